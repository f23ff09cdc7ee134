"""Faults of nets of pictures and tables, and of what these nets are given."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_wine, make_friedman1
from torch import Tensor, nn
from torch.nn import functional

import sonde
from scan._healthy import Kind, task
from scan._healthy_nets import Encoder
from scan._unnamed import Unnamed
from scan._zoo import digit_net, digits, quiet
from sonde.report import Report

Change = Callable[[Any], object]


class Attention(nn.Module):
    """Attention of two heads over all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.scale: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(2, (2, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and a feed-forward part, each after a norm and around a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim))
        self.twice = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.twice * self.feed(self.norm2(x))


class Patched(nn.Module):
    """Digits as 16 patches, six layers, their mean, a norm and a head."""

    def __init__(self, dim: int = 32, depth: int = 6) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, dim), nn.Parameter(torch.randn(16, dim) * 0.5)
        self.layers = nn.ModuleList([Layer(dim) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)
        self.last: Callable[[Tensor], Tensor] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        grid = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        h = 2 * self.embed(grid) + self.place
        for layer in self.layers:
            h = layer(h)
        return self.last(self.head(self.norm(h.mean(1))))


class Standardised(nn.Module):
    """A perceptron over columns that it standardises itself."""

    def __init__(self, x: Tensor, out: int) -> None:
        super().__init__()
        self.mean, self.scale = nn.Buffer(x.mean(0)), nn.Buffer(x.std(0))
        self.body = nn.Sequential(
            nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.scale)


class Colours(nn.Module):
    """A small net of coloured pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@dataclass(frozen=True, eq=False)
class World:
    """A trained net with the rows that it did not see."""

    net: nn.Module
    x: Tensor
    y: Tensor
    columns: tuple[str, ...] = ()

    def scan(self, change: Change | None = None, x: Tensor | None = None,
             y: Tensor | None = None) -> Report:  # fmt: skip
        net = deepcopy(self.net).requires_grad_(False).eval()
        if change is not None:
            with torch.no_grad():
                change(net)
        x, y = self.x if x is None else x, self.y if y is None else y
        if self.columns:
            rows: Any = {c: x[:, i].tolist() for i, c in enumerate(self.columns)}
            return sonde.scan(net, rows | {"label": y.tolist()}, settings=quiet())
        label = y.tolist()
        items = [{"x": row, "label": k} for row, k in zip(x, label, strict=True)]
        return sonde.scan(net, items, settings=quiet())


@torch.enable_grad()
def _fitted(net: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float = 3e-3) -> nn.Module:
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    loss = functional.cross_entropy if y.dtype == torch.int64 else functional.mse_loss
    draw = torch.Generator().manual_seed(5)
    net.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=draw)
        optimiser.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def _split(n: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return order[: n // 2], order[n // 2 :]


@cache
def patched() -> World:
    torch.manual_seed(1)
    x, y = digits()
    mine, held = _split(len(x))
    return World(_fitted(Patched(), x[mine], y[mine], 500), x[held], y[held])


@cache
def early() -> nn.Module:
    torch.manual_seed(1)
    x, y = digits()
    mine, _ = _split(len(x))
    return _fitted(Patched(), x[mine], y[mine], 30)


@cache
def residual() -> World:
    x, y = digits()
    _, held = _split(len(x))
    return World(digit_net("residual-cnn", 211, True)[0], x[held], y[held])


@cache
def perceptron() -> World:
    x, y = digits()
    _, held = _split(len(x))
    return World(digit_net("relu-mlp", 211, True)[0], x[held], y[held])


@cache
def colours() -> World:
    """Return a net that tells digits of a colour of their own apart."""
    torch.manual_seed(2)
    x, y = digits()
    draw = torch.Generator().manual_seed(7)
    hue = torch.rand(10, 3, generator=draw)[y]
    ink = hue + 0.1 * torch.randn(len(x), 3, generator=draw)
    pictures = x.reshape(-1, 1, 8, 8) * ink[:, :, None, None]
    mine, held = _split(len(x))
    return World(_fitted(Colours(), pictures[mine], y[mine], 250), pictures[held], y[held])


def _table(load: Any) -> World:
    torch.manual_seed(4)
    found = load()
    names = tuple(str(n).replace(" ", "_").replace("/", "_") for n in found.feature_names)
    x, y = torch.tensor(found.data).float(), torch.tensor(found.target).long()
    spread = 0.15 * x.std(0)
    copies = 3 if len(x) < 300 else 1
    x, y = x.repeat(copies, 1), y.repeat(copies)
    x = x + spread * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    mine, held = _split(len(x))
    net = _fitted(Standardised(x[mine], int(y.max()) + 1), x[mine], y[mine], 300)
    return World(net, x[held], y[held], names)


@cache
def cancer() -> World:
    return _table(load_breast_cancer)


@cache
def wine() -> World:
    return _table(load_wine)


@cache
def friedman() -> World:
    torch.manual_seed(6)
    x, y = (torch.tensor(v).float() for v in make_friedman1(1_200, noise=0.3, random_state=4))
    net = _fitted(Standardised(x[:600], 1), x[:600], y[:600, None], 500, 5e-3)
    return World(net, x[600:], y[600:], tuple(f"sensor_{i}" for i in range(10)))


@cache
def topics(folder: Path) -> World:
    """Return an encoder of three topics over texts of one length."""
    kind = Kind("encoder", "topics", lambda: Encoder(40, 3), 3e-3, 200)
    what = task("topics")
    return World(kind.trained(folder), what.inputs["input_ids"][:600], what.target[:600])


def _wrap(path: str, what: Callable[[Tensor], Tensor]) -> Change:
    def change(net: nn.Module) -> None:
        part = net.get_submodule(path)
        inner = part.forward
        part.forward = lambda *a, **k: what(inner(*a, **k))  # type: ignore[method-assign]

    return change


def _each(kind: type[nn.Module], what: Callable[[Any], object]) -> Change:
    def change(net: nn.Module) -> None:
        for part in net.modules():
            if isinstance(part, kind):
                what(part)

    return change


def _loaded(which: Sequence[int]) -> Change:
    def change(net: Any) -> None:
        for i in which:
            net.layers[i].load_state_dict(early().layers[i].state_dict())  # type: ignore[attr-defined]

    return change


def _swap(a: int, b: int) -> Change:
    def change(net: Any) -> None:
        net.layers[a], net.layers[b] = net.layers[b], net.layers[a]

    return change


def _another(kind: type[nn.Module], new: Callable[[], nn.Module]) -> Change:
    def change(net: nn.Module) -> None:
        for name, part in list(net.named_modules()):
            if isinstance(part, kind):
                parent, _, last = name.rpartition(".")
                setattr(net.get_submodule(parent), last, new())

    return change


class _Sure(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


NETS: dict[str, tuple[str, Change]] = {
    "update of layer 3 twice": (r"layers\.3", lambda n: setattr(n.layers[3], "twice", 2.0)),
    "update of layer 3 eight times": (r"layers\.3", lambda n: setattr(n.layers[3], "twice", 8.0)),
    "update of layer 2 turned": (r"layers\.2", lambda n: setattr(n.layers[2], "twice", -1.0)),
    "1/sqrt(d) left out": (
        r"attention|query|key|scal", _each(Attention, lambda a: setattr(a, "scale", 1.0))
    ),
    "relu for gelu": (r"relu|gelu|activation", _another(nn.GELU, nn.ReLU)),
    "tanh for gelu": (r"tanh|gelu|activation", _another(nn.GELU, nn.Tanh)),
    "epsilon 1 in norms": (r"eps", _each(nn.LayerNorm, lambda m: setattr(m, "eps", 1.0))),
    "early weights in three layers": (r"layers\.[134]", _loaded((1, 3, 4))),
    "early weights in one layer": (r"layers\.2", _loaded((2,))),
    "layers 0 and 4 exchanged": (r"layers\.[04]", _swap(0, 4)),
    "places halved": (r"place|position", lambda n: n.place.mul_(0.3)),
    "softmax twice": (
        r"temperature|sure|probab|softmax",
        lambda n: setattr(n, "last", nn.Sequential(nn.Softmax(1), nn.Softmax(1))),
    ),
    "ten times too sure": (
        r"temperature|overconfident|probab",
        lambda n: setattr(n, "last", _Sure()),
    ),
}  # fmt: skip


def _part(x: Tensor, share: float, what: Callable[[Tensor], Tensor]) -> Tensor:
    mine = torch.rand(len(x), generator=torch.Generator().manual_seed(11)) < share
    return torch.where(mine.reshape(-1, *[1] * (x.ndim - 1)), what(x), x)


def _shift(x: Tensor) -> Tensor:
    return x.reshape(-1, 8, 8).roll(1, 2).reshape(-1, 64)


def _column(i: int, what: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        made = x.clone()
        made[:, i] = what(x[:, i])
        return made

    return change


def _slipped(y: Tensor) -> Tensor:
    half = len(y) // 2
    return torch.cat([y[:half], y[half:].roll(1)])


def _from_middle(i: int, what: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        made, half = x.clone(), len(x) // 2
        made[half:, i] = what(x[half:, i])
        return made

    return change


def _decisive(world: World) -> int:
    """Return the column that costs most when its values are exchanged among the rows."""
    lost = []
    for i in range(world.x.shape[1]):
        x = world.x.clone()
        x[:, i] = x[:, i].roll(len(x) // 3)
        with torch.no_grad():
            said = world.net(x)
        wrong = (said[:, 0] - world.y).abs() if said.shape[1] == 1 else (
            said.argmax(1) != world.y
        ).float()  # fmt: skip
        lost.append(float(wrong.mean()))
    return int(np.argmax(lost))


def net_faults(folder: Path) -> Iterator[Unnamed]:
    """Yield the faults of nets and of their inputs, after each net as it is."""
    yield Unnamed("patches", "(as it is)", r"^$", lambda: patched().scan())
    for name, (says, change) in NETS.items():
        yield Unnamed("patches", name, says, lambda c=change: patched().scan(c))
    yield Unnamed("cnn", "(as it is)", r"^$", lambda: residual().scan())
    yield Unnamed(
        "cnn", "batch norm epsilon 1", r"eps",
        lambda: residual().scan(_each(nn.BatchNorm2d, lambda m: setattr(m, "eps", 1.0))),
    )  # fmt: skip
    yield Unnamed(
        "cnn", "block 2 four times", r"layers\.2|bn2",
        lambda: residual().scan(_wrap("layers.2.bn2", lambda x: 4 * x)),
    )  # fmt: skip
    yield Unnamed("mlp", "(as it is)", r"^$", lambda: perceptron().scan())
    yield Unnamed(
        "mlp", "leaky relu .5", r"relu|activation",
        lambda: perceptron().scan(_another(nn.ReLU, lambda: nn.LeakyReLU(0.5))),
    )  # fmt: skip
    for name, says, what in (
        ("a third inverted", r"invert", lambda x: _part(x, 0.33, lambda v: 1 - v)),
        ("one pixel to the right", r"pixel|moved|shift", _shift),
        ("gamma 3", r"gamma|bright|dark|power", lambda x: x**3),
        ("bytes that wrap", r"wrap|overflow|255|256|remainder", lambda x: (x * 480 % 256) / 255),
        ("upper left quarter blank", r"pixel|patch|region|blank|part of", _quarter_blank),
    ):
        yield Unnamed("mlp", name, says, lambda w=what: perceptron().scan(x=w(perceptron().x)))
    yield from _of_colours()
    yield from _of_tables()
    yield from _of_topics(folder)


def _of_topics(folder: Path) -> Iterator[Unnamed]:
    def scan(change: Change | None, words: Callable[[Tensor], Tensor] | None) -> Report:
        world = topics(folder)
        net = deepcopy(world.net).requires_grad_(False).eval()
        if change is not None:
            with torch.no_grad():
                change(net)
        ids = world.x if words is None else words(world.x)
        lists = zip(ids.tolist(), world.y.tolist(), strict=True)
        items = [{"input_ids": text, "label": label} for text, label in lists]
        return sonde.scan(net, items, settings=quiet())

    def rows(net: Any) -> None:
        order = torch.arange(40)
        order[16:24], order[24:32] = torch.arange(24, 32), torch.arange(16, 24)
        net.embed.weight.copy_(net.embed.weight[order])

    def unknown(ids: Tensor) -> Tensor:
        lost = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.8
        return torch.where(lost & (ids >= 16), 3, ids)

    yield Unnamed("topics", "(as it is)", r"^$", lambda: scan(None, None))
    yield Unnamed("topics", "embedding rows exchanged", r"embed|token|exchang",
                  lambda: scan(rows, None))  # fmt: skip
    yield Unnamed("topics", "most words unknown", r"token|unknown", lambda: scan(None, unknown))
    yield Unnamed("topics", "feed-forward of block 1 four times", r"layers\.1", lambda: scan(
        _wrap("blocks.layers.1.linear2", lambda x: 4 * x), None))  # fmt: skip


def _quarter_blank(x: Tensor) -> Tensor:
    made = x.reshape(-1, 8, 8).clone()
    made[:, 2:5, 2:5] = 0
    return made.reshape(-1, 64)


def _of_colours() -> Iterator[Unnamed]:
    yield Unnamed("colours", "(as it is)", r"^$", lambda: colours().scan())
    for name, says, what in (
        ("a third in BGR", r"BGR|reverse", lambda x: _part(x, 0.33, lambda v: v.flip(1))),
        ("one channel empty", r"channel", lambda x: x * torch.tensor([1.0, 0, 1]).reshape(3, 1, 1)),
        ("grey", r"grey|gray|colour|channels", lambda x: x.mean(1, keepdim=True).expand_as(x)),
    ):
        yield Unnamed("colours", name, says, lambda w=what: colours().scan(x=w(colours().x)))


def _of_tables() -> Iterator[Unnamed]:
    worlds = {"cancer": cancer, "wine": wine, "friedman": friedman}
    for model, world in worlds.items():
        yield Unnamed(model, "(as it is)", r"^$", lambda w=world: w().scan())

        def plant(
            name: str, what: Any, says: str, world: Any = world, model: str = model
        ) -> Unnamed:
            def scan() -> Report:
                i = _decisive(world())
                return world().scan(x=what(i)(world().x))

            return Unnamed(model, name, says, scan)

        yield plant(
            "a third of rows in feet",
            lambda i: lambda x: _part(x, 0.33, _column(i, lambda v: v * 3.28084)),
            r"3\.28|of all rows are given in another form",
        )
        yield plant("a column stuck from the middle", lambda i: _from_middle(i, lambda v: v[:1]),
                    r"from row")  # fmt: skip
        yield plant(
            "-999 from the middle on",
            lambda i: _from_middle(i, lambda v: v * 0 - 999),
            r"from row|-999",
        )  # fmt: skip
        yield Unnamed(
            model, "labels slip from the middle", r"misaligned",
            lambda w=world: w().scan(y=_slipped(w().y)),
        )  # fmt: skip
    yield Unnamed("friedman", "targets in logs", r"log", lambda: friedman().scan(
        y=(friedman().y + 3).clamp(min=0.1).log()))  # fmt: skip
    yield Unnamed("cancer", "labels of one class wrong (35 %)", r"label", lambda: cancer().scan(
        y=torch.where((cancer().y == 1) & (torch.rand(
            len(cancer().y), generator=torch.Generator().manual_seed(1)) < 0.35),
            0, cancer().y)))  # fmt: skip
