"""A zoo of healthy models: tiny nets over digits, trained to the end or of random weights."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import sonde
from findings._nets import Block
from models import ARCHITECTURES, VOCABULARY, Architecture, model_of
from sonde.findings.settings import ScanSettings
from sonde.report import Report

SEEDS = (211, 223, 227, 229, 233)
ROWS = 1_000
BATCH = 64

Items = list[dict[str, Any]]
CROSS_ENTROPY = partial(functional.cross_entropy, label_smoothing=0.05)


class Residual(nn.Module):
    """Two convolutions with batch norm around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(h)))


class ResidualCNN(nn.Module):
    """A stem, four residual blocks, a global average and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.layers = nn.ModuleList([Residual(width) for _ in range(4)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x.unflatten(1, (1, 8, 8))))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=(2, 3)))


class PatchNet(nn.Module):
    """Patches of 2 x 2 pixels, six pre-norm blocks, their mean, a norm and a head."""

    def __init__(self, dim: int = 24, depth: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(4, dim)
        self.place = nn.Parameter(torch.randn(16, dim) * 0.5)
        self.blocks = nn.ModuleList([Block(dim) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        h = 2 * self.embed(grid) + self.place
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h.mean(dim=1)))


def plain(activation: type[nn.Module], gain: float, width: int = 64) -> nn.Sequential:
    """Return four layers, an activation after each, and a head."""
    parts: list[nn.Module] = []
    for _ in range(4):
        layer = nn.Linear(64, width)
        nn.init.normal_(layer.weight, std=gain / 64**0.5)
        nn.init.zeros_(layer.bias)
        parts += [layer, activation()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def residual_cnn() -> ResidualCNN:
    """Return a residual net whose convolutions start as He et al. (2015) have it."""
    net = ResidualCNN()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


FAMILIES: dict[str, tuple[Callable[[], nn.Module], float, int]] = {
    "relu-mlp": (lambda: plain(nn.ReLU, 2**0.5), 3e-3, 500),
    "tanh-mlp": (lambda: plain(nn.Tanh, 1.0), 3e-3, 500),
    "residual-cnn": (residual_cnn, 5e-3, 250),
    "patch-net": (PatchNet, 5e-3, 400),
}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 digits with pixels in [0, 1], and their labels."""
    found: Any = load_digits()
    return torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)


REGRESSORS: dict[str, tuple[type[nn.Module], float]] = {
    "relu-regressor": (nn.ReLU, 2**0.5),
    "tanh-regressor": (nn.Tanh, 1.0),
}


def fifths(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows that a net is tested on, a fifth, and those that it is trained on."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return order[: n // 5], order[n // 5 :]


@cache
def digit_regressor(family: str, seed: int, trained: bool) -> tuple[nn.Module, float]:
    """Return a net that says how far right the ink lies, and its R2 on digits of the other fifth.

    Weight decay leaves layers that say little else than this number.
    """
    torch.manual_seed(seed)
    net = plain(*REGRESSORS[family])
    net[-1] = nn.Linear(64, 1)
    x, _ = digits()
    across = x.unflatten(1, (8, 8)).sum(1)
    place = (across @ torch.arange(8.0) / across.sum(1))[:, None]
    place = (place - place.mean()) / place.std()
    held, mine = fifths(len(x), seed)
    if trained:
        train(net, x[mine], place[mine], 3e-3, 1_000, functional.mse_loss, decay=0.3)
    net.eval()
    with torch.no_grad():
        wrong = (net(x[held]) - place[held]).square().mean()
    return net, float(1 - wrong / place[held].var(correction=0))


@cache
def digit_net(family: str, seed: int, trained: bool) -> tuple[nn.Module, float]:
    """Return one net and its accuracy on the fifth of the digits that it was not trained on."""
    build, rate, steps = FAMILIES[family]
    torch.manual_seed(seed)
    net = build()
    x, label = digits()
    held, mine = fifths(len(x), seed)
    if trained:
        train(net, x[mine], label[mine], rate, steps)
    net.eval()
    with torch.no_grad():
        return net, float((net(x[held]).argmax(1) == label[held]).double().mean())


@torch.enable_grad()
def train(
    net: nn.Module,
    x: Tensor,
    target: Tensor,
    rate: float,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY,
    decay: float = 0.01,
) -> None:
    """Fit a net by Adam with one cycle of the learning rate."""
    net.train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,))
        optimiser.zero_grad()
        loss(net(x[rows]), target[rows]).backward()
        optimiser.step()
        schedule.step()


def digit_items(seed: int, n: int = ROWS) -> Items:
    """Return digits in an order and with ids that a seed shuffles."""
    x, label = digits()
    draw = np.random.default_rng([seed, 1])
    order, names = draw.permutation(len(x))[:n], draw.permutation(n)
    return [
        {"x": x[i], "label": int(label[i]), "id": f"row{name}"}
        for i, name in zip(order, names, strict=True)
    ]


def token_items(n: int = 300, longest: int = 32, seed: int = 239) -> Items:
    """Return lists of tokens of different lengths, with the frequencies of a text (Zipf)."""
    draw = np.random.default_rng(seed)
    weight = 1 / np.arange(1, VOCABULARY - 2)
    lengths = draw.integers(8, longest, n)
    return [
        {"input_ids": (3 + draw.choice(len(weight), m, p=weight / weight.sum())).tolist()}
        for m in lengths
    ]


def picture_items(size: int, n: int = 300, seed: int = 241) -> Items:
    """Return digits as pictures of ``size`` pixels, each in two colours of its own and grainy."""
    x, label = digits()
    order = np.random.default_rng(seed).permutation(len(x))[:n]
    draw = torch.Generator().manual_seed(seed)
    ink = functional.interpolate(x[order].reshape(-1, 1, 8, 8), size=(size, size), mode="bilinear")
    colours = 0.2 + 0.8 * torch.rand(2, n, 3, 1, 1, generator=draw)
    picture = ink * colours[0] - (1 - ink) * colours[1]
    picture += 0.1 * torch.randn(picture.shape, generator=draw)
    return [{"x": p, "label": int(label[i])} for p, i in zip(picture, order, strict=True)]


def residual_init(module: nn.Module, seed: int) -> None:
    """Draw the weights of layers anew, scaled by their inputs (He et al. 2015 before a ReLU).

    The fixed 0.02 of most language models is meant for layers of width 768; in layers of width 32
    it leaves blocks that do almost nothing, as SND025 rightly says.
    """
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        elif type(part).__name__ == "Conv1D":
            weight = part.get_parameter("weight")
            nn.init.normal_(weight, std=weight.shape[0] ** -0.5)
        elif isinstance(part, nn.Conv2d) and part.groups == 1:
            nn.init.kaiming_normal_(part.weight)


@torch.no_grad()
def settle_batch_norms(module: nn.Module, items: Items) -> None:
    """Let batch norms see the data, so that their statistics belong to these weights."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = 1.0
    if norms:
        module(torch.stack([item["x"] for item in items]))
        for norm in norms:
            norm.eval()


@dataclass(frozen=True)
class Animal:
    """One healthy model and how it is scanned.

    ``learned`` is its accuracy or R2, or None where that is not the point.
    """

    name: str
    scan: Callable[[], Report]
    learned: Callable[[], float] | None = None


@dataclass(frozen=True)
class Row:
    """How one scan ended."""

    name: str
    accuracy: float | None
    levels: dict[str, list[str]]
    failed: list[str]
    seconds: float
    sentences: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = "".join(f"{len(self.levels[level]):9d}" for level in LEVELS)
        said = [
            f"{code}{mark}"
            for level, mark in zip(LEVELS, ("", "(W)", "(E)"), strict=True)
            for code in self.levels[level]
        ] + [f"{code} failed" for code in self.failed]
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.3f}"
        return f"{self.name:28s}{accuracy:>9s}{counts}{self.seconds:8.1f}  {' '.join(said)}"


LEVELS = ("note", "warning", "error")
HEADER = (
    f"{'model':28s}{'accuracy':>9s}{'notes':>9s}{'warnings':>9s}{'errors':>9s}{'wall':>8s}  codes"
)


def quiet(**options: Any) -> ScanSettings:
    """Return settings of a scan that draws no bar."""
    return ScanSettings(progress=False, **options)


def zoo() -> Iterator[Animal]:
    """Yield every healthy model."""
    for trained in (True, False):
        for family in FAMILIES:
            for seed in SEEDS:
                yield _digit_animal(family, seed, trained)
        for family in REGRESSORS:
            for seed in SEEDS:
                yield _regressor_animal(family, seed, trained)
    for architecture in ARCHITECTURES:
        yield Animal(f"random {architecture.name}", lambda a=architecture: scan_architecture(a))
    yield Animal("sonde:digits", lambda: _shipped("sonde:digits", "sonde:digits/test"))
    yield Animal(
        "sonde:stdlib",
        lambda: _shipped("sonde:stdlib", "sonde:stdlib/test", limit=64, max_length=64),
    )


def _digit_animal(family: str, seed: int, trained: bool) -> Animal:
    def scan() -> Report:
        net, _ = digit_net(family, seed, trained)
        return sonde.scan(net, digit_items(seed), settings=quiet())

    name = f"{'trained' if trained else 'random'} {family} {seed}"
    return Animal(name, scan, lambda: digit_net(family, seed, trained)[1])


def _regressor_animal(family: str, seed: int, trained: bool) -> Animal:
    def scan() -> Report:
        net, _ = digit_regressor(family, seed, trained)
        items = [{"x": item["x"], "id": item["id"]} for item in digit_items(seed)]
        return sonde.scan(net, items, settings=quiet())

    name = f"{'trained' if trained else 'random'} {family} {seed}"
    return Animal(name, scan, lambda: digit_regressor(family, seed, trained)[1])


def scan_architecture(architecture: Architecture) -> Report:
    """Scan one of the tiny architectures at random initialisation."""
    model = model_of(architecture)
    residual_init(model.module, SEEDS[0])
    if architecture.takes.startswith("image"):
        items = picture_items(int(architecture.takes[5:]))
        settle_batch_norms(model.module, items)
        return sonde.scan(model.module, items, settings=quiet())
    return sonde.scan(model, token_items(), settings=quiet())


def _shipped(model: str, data: str, **options: Any) -> Report:
    return sonde.scan(model, data, settings=quiet(), **options)


def examine(animal: Animal) -> Row:
    """Scan one model and note what was raised."""
    accuracy = None if animal.learned is None else animal.learned()
    began = time.perf_counter()
    report = animal.scan()
    seconds = time.perf_counter() - began
    levels: dict[str, list[str]] = {level: [] for level in LEVELS}
    for finding in report.findings:
        levels[finding["level"]].append(finding["code"])
    failed = [c["code"] for c in report.json()["checks"] if c["state"] == "failed"]
    loud = (f for f in report.findings if f["level"] != "note" and not f["because_of"])
    said = tuple(f"{f['code']} {f['sentence']}" for f in loud)
    return Row(animal.name, accuracy, levels, failed, seconds, said)


def summary(rows: Sequence[Row]) -> str:
    """Return the last line of the table."""
    counts = [sum(len(r.levels[level]) for r in rows) for level in LEVELS]
    said = ", ".join(f"{n} {level}s" for n, level in zip(counts, LEVELS, strict=True))
    return f"{len(rows)} models: {said}; {sum(r.seconds for r in rows):.0f} s of scans"
