"""A healthy zoo of trained nets of many kinds: what each learns, and how it is scanned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_iris, load_wine, make_classification
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import sonde
from scan._healthy_nets import (
    TCN,
    VAE,
    DeepSets,
    Encoder,
    Experts,
    Fourier,
    GraphNet,
    Mixer,
    MultiTask,
    PatchEncoder,
    Recurrent,
    Siamese,
    Tabular,
    Tagger,
    TextCNN,
    Then,
    UNet,
    bert,
    conv,
    conv_autoencoder,
    dense_block,
    highway,
    inception,
    maxout,
    mlp,
    next_block,
    pooled,
    quantised,
    separable,
    skip,
    squeeze_excite,
    swiglu,
)
from scan._zoo import Animal, digits, fifths, quiet
from sonde.report import Report

SEED = 251
SCANNED = 800

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """Inputs by the names that ``forward`` gives them, and what is to be said of each row.

    Parameters
    ----------
    inputs : dict of str to Tensor
    target : Tensor
        Classes, or numbers.
    loss : callable
    labelled : bool
        Whether a scan is told the classes.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    loss: Loss = functional.cross_entropy
    labelled: bool = True

    def score(self, net: nn.Module, rows: Tensor) -> float:
        """Return accuracy, or R2 where the target is numbers."""
        with torch.no_grad():
            answer = net(*(v[rows] for v in self.inputs.values()))
        answer = getattr(answer, "logits", answer)
        target = self.target[rows]
        if self.loss is both_losses:
            return float((answer.argmax(1) == target[:, 0].long()).double().mean())
        if target.dtype == torch.int64:
            at = 1 if answer.ndim == 2 else -1
            return float((answer.argmax(at) == target).double().mean())
        if self.loss is functional.binary_cross_entropy_with_logits:
            return float(((answer > 0) == (target > 0.5)).double().mean())
        wrong = (answer.reshape(target.shape) - target).square().sum()
        return float(1 - wrong / (target - target.mean(0)).square().sum())

    def items(self) -> list[dict[str, Any]]:
        """Return rows as a user has them: texts without their padding.

        Their order is not that of ``fifths``: rows that were trained on would follow those that
        were not, which is a change in the file that SND049 finds.
        """
        n = len(self.target)
        order = np.random.default_rng(SEED + 1).permutation(n)[:SCANNED]
        return [self._item(int(i)) for i in order]

    def _item(self, i: int) -> dict[str, Any]:
        item: dict[str, Any] = {"id": f"row{i}"}
        mask = self.inputs.get("attention_mask")
        for name, values in self.inputs.items():
            if name == "input_ids":
                length = values.shape[1] if mask is None else int(mask[i].sum())
                item[name] = values[i, :length].tolist()
            elif name != "attention_mask":
                item[name] = values[i]
        if self.labelled:
            item["label"] = int(self.target[i].flatten()[0])
        return item


def both_losses(answer: Tensor, target: Tensor) -> Tensor:
    """Return the loss of a class and of a number."""
    classes = functional.cross_entropy(answer[:, :10], target[:, 0].long())
    return classes + functional.mse_loss(answer[:, 10], target[:, 1])


def of_tokens(answer: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss over tokens."""
    return functional.cross_entropy(answer.flatten(0, 1), target.flatten())


@cache
def task(name: str) -> Task:
    """Return one of the things to learn."""
    return TASKS[name]()


def _digits(*shape: int) -> Task:
    x, label = digits()
    return Task({"x": x.reshape(-1, *shape)}, label)


def _ink_of_noisy() -> Task:
    x = digits()[0].reshape(-1, 1, 8, 8)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
    ink = (x > 0.5).float()
    return Task({"x": x + 0.3 * noise}, ink, functional.binary_cross_entropy_with_logits, False)


def _same_digit(*shape: int) -> Task:
    x = digits()[0].reshape(-1, *shape)
    return Task({"x": x}, x, functional.mse_loss, False)


def _clusters(classes: int, dim: int) -> Task:
    x, y = make_classification(
        2_000, dim, n_informative=min(8, dim), n_redundant=0, n_classes=classes,
        class_sep=1.6, random_state=SEED,
    )  # fmt: skip
    return Task({"x": torch.tensor(x, dtype=torch.float32)}, torch.tensor(y))


def _known(load: Any) -> Task:
    """Return a small table, each row eight times with noise of a tenth of its spread."""
    found: Any = load()
    x = torch.tensor(found.data, dtype=torch.float32).repeat(8, 1)
    x = (x - x.mean(0)) / x.std(0)
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
    return Task({"x": x}, torch.tensor(found.target).repeat(8))


def _numbers(dim: int, out: int) -> Task:
    draw = torch.Generator().manual_seed(SEED)
    x = torch.rand(2_000, dim, generator=draw) * 2 - 1
    y = torch.stack([(2 * x[:, i % dim]).sin() + x[:, (i + 1) % dim] ** 2 for i in range(out)], 1)
    return Task({"x": x}, y, functional.mse_loss, False)


def _topics(padded: bool) -> Task:
    """Return texts of three topics; a topic's own words are half of a text."""
    draw = np.random.default_rng(SEED)
    n, longest = 1_500, 24
    label, ids = draw.integers(0, 3, n), draw.integers(4, 16, (n, longest))
    own = 16 + 8 * label[:, None] + draw.integers(0, 8, (n, longest))
    ids = np.where(draw.random((n, longest)) < 0.4, own, ids)
    inputs = {"input_ids": torch.tensor(ids)}
    if padded:
        length = torch.tensor(draw.integers(8, longest + 1, n))
        mask = (torch.arange(longest) < length[:, None]).long()
        inputs = {"input_ids": inputs["input_ids"] * mask, "attention_mask": mask}
    return Task(inputs, torch.tensor(label))


def _tags() -> Task:
    ids = task("topics").inputs["input_ids"]
    before = functional.pad(ids[:, :-1], (1, 0))
    tag = torch.where(ids < 16, 0, 1 + (ids - 16) // 8) + (before % 5 == 0)
    return Task({"input_ids": ids}, tag, of_tokens, False)


def _next_token() -> Task:
    """Return texts in which a token says mostly what follows."""
    draw = np.random.default_rng(SEED)
    chance = draw.dirichlet(np.full(40, 0.08), 40).cumsum(1)
    ids = np.zeros((1_000, 25), dtype=np.int64)
    ids[:, 0] = draw.integers(0, 40, 1_000)
    for i in range(24):
        ids[:, i + 1] = (draw.random((1_000, 1)) > chance[ids[:, i]]).sum(1).clip(max=39)
    x = torch.tensor(ids)
    return Task({"input_ids": x[:, :-1]}, x[:, 1:], of_tokens, False)


def _clouds() -> Task:
    draw = torch.Generator().manual_seed(SEED)
    label = torch.randint(3, (1_500,), generator=draw)
    points = torch.randn(1_500, 24, 2, generator=draw)
    ring = points / points.norm(dim=2, keepdim=True)
    line = torch.stack([points[..., 0], points[..., 0] * 0.8], 2)
    shapes = torch.stack([points, ring, line + 0.2 * points], 1)
    return Task({"points": shapes[torch.arange(1_500), label]}, label)


def _graphs() -> Task:
    draw = torch.Generator().manual_seed(SEED)
    label = torch.randint(2, (1_500,), generator=draw)
    nodes = torch.randn(1_500, 12, 4, generator=draw)
    edges = (torch.rand(1_500, 12, 12, generator=draw) < 0.25).float()
    edges = ((edges + edges.transpose(1, 2)) > 0).float()
    nodes = nodes + (label[:, None, None] - 0.5) * edges.sum(2, keepdim=True) / 3
    return Task({"nodes": nodes, "edges": edges}, label)


def _table() -> Task:
    draw = torch.Generator().manual_seed(SEED)
    numbers = torch.randn(2_000, 8, generator=draw)
    first, second = torch.randint(12, (2, 2_000), generator=draw)
    worth = torch.randn(2, 12, generator=draw)
    value = numbers[:, 0] + numbers[:, 1] * numbers[:, 2] + 2 * worth[0, first] * worth[1, second]
    return Task({"numbers": numbers, "first": first, "second": second}, (value > 0).long())


def _pairs() -> Task:
    x, label = digits()
    draw = torch.Generator().manual_seed(SEED)
    left, right = torch.randint(len(x), (2, 8_000), generator=draw)
    kept = torch.cat([(label[left] == label[right]).nonzero().flatten()[:800],
                      (label[left] != label[right]).nonzero().flatten()[:800]])  # fmt: skip
    left, right = left[kept], right[kept]
    return Task({"left": x[left], "right": x[right]}, (label[left] == label[right]).long())


def _digit_and_place() -> Task:
    x, label = digits()
    across = x.unflatten(1, (8, 8)).sum(1)
    place = across @ torch.arange(8.0) / across.sum(1)
    place = (place - place.mean()) / place.std()
    return Task({"x": x}, torch.stack([label.float(), place], 1), both_losses)


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: _digits(64),
    "images": lambda: _digits(1, 8, 8),
    "lines": lambda: _digits(8, 8),
    "ink": _ink_of_noisy,
    "copy": lambda: _same_digit(64),
    "copy image": lambda: _same_digit(1, 8, 8),
    "two classes": lambda: _clusters(2, 20),
    "three classes": lambda: _clusters(3, 20),
    "iris": lambda: _known(load_iris),
    "wine": lambda: _known(load_wine),
    "number": lambda: _numbers(10, 1),
    "four numbers": lambda: _numbers(10, 4),
    "surface": lambda: _numbers(2, 1),
    "topics": lambda: _topics(False),
    "padded topics": lambda: _topics(True),
    "tags": _tags,
    "next token": _next_token,
    "clouds": _clouds,
    "graphs": _graphs,
    "table": _table,
    "pairs": _pairs,
    "digit and place": _digit_and_place,
}


@dataclass(frozen=True)
class Kind:
    """A net, what it learns, and by what steps."""

    name: str
    task: str
    build: Callable[[], nn.Module]
    rate: float = 5e-3
    steps: int = 400
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    after: Callable[[nn.Module], nn.Module] | None = None

    def trained(self, folder: Path) -> nn.Module:
        """Return the trained net; its weights are kept in a folder, and read from there again."""
        torch.manual_seed(SEED)
        net, kept = self.build(), folder / f"{self.name}.pt"
        if kept.exists():
            net.load_state_dict(torch.load(kept, weights_only=True))
        else:
            self._train(net)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(net.state_dict(), kept)
        net.eval()
        return net if self.after is None else self.after(net)

    @torch.enable_grad()
    def _train(self, net: nn.Module) -> None:
        what = task(self.task)
        _, mine = fifths(len(what.target), SEED)
        optimiser = self.optimiser(net.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        net.train()
        for _ in range(self.steps):
            rows = mine[torch.randint(len(mine), (64,))]
            answer = net(*(v[rows] for v in what.inputs.values()))
            optimiser.zero_grad()
            what.loss(getattr(answer, "logits", answer), what.target[rows]).backward()
            optimiser.step()
            schedule.step()


SGD = partial(torch.optim.SGD, momentum=0.9)
WIDE = [64, 64, 64, 10]
LEAKY, XAVIER = nn.LeakyReLU, nn.init.xavier_uniform_
HE, LECUN = nn.init.kaiming_normal_, partial(nn.init.kaiming_normal_, nonlinearity="linear")


def kinds() -> Iterator[Kind]:
    """Yield every kind of net."""
    yield from _plain()
    yield from _other_layers()
    yield from _pictures()
    yield from _sequences_and_sets()
    yield from _few_answers()


def _plain() -> Iterator[Kind]:
    yield from (
        Kind("mlp-relu-he", "digits", lambda: mlp(WIDE, init=HE)),
        Kind("mlp-tanh-orthogonal", "digits", lambda: mlp(WIDE, nn.Tanh, init=nn.init.orthogonal_)),
        Kind("mlp-sigmoid-xavier", "digits", lambda: mlp(WIDE, nn.Sigmoid, init=XAVIER)),
        Kind("mlp-gelu-adamw", "digits", lambda: mlp(WIDE, nn.GELU), 5e-3, 400, torch.optim.AdamW),
        Kind("mlp-silu-sgd", "digits", lambda: mlp(WIDE, nn.SiLU, init=HE), 0.05, 500, SGD),
        Kind(
            "mlp-elu-rmsprop", "digits", lambda: mlp(WIDE, nn.ELU), 1e-3, 400, torch.optim.RMSprop
        ),
        Kind("mlp-selu-lecun", "digits", lambda: mlp(WIDE, nn.SELU, init=LECUN)),
        Kind(
            "mlp-leaky-adagrad", "digits", lambda: mlp(WIDE, LEAKY), 0.03, 400, torch.optim.Adagrad
        ),
        Kind("mlp-mish-nadam", "digits", lambda: mlp(WIDE, nn.Mish), 3e-3, 400, torch.optim.NAdam),
        Kind(
            "mlp-softplus-adamax",
            "digits",
            lambda: mlp(WIDE, nn.Softplus),
            0.01,
            400,
            torch.optim.Adamax,
        ),
        Kind("mlp-hardswish", "digits", lambda: mlp(WIDE, nn.Hardswish)),
        Kind("mlp-prelu", "digits", lambda: mlp(WIDE, nn.PReLU)),
        Kind("mlp-batch-norm", "digits", lambda: mlp(WIDE, norm=nn.BatchNorm1d)),
        Kind("mlp-layer-norm", "digits", lambda: mlp(WIDE, norm=nn.LayerNorm)),
        Kind("mlp-dropout", "digits", lambda: mlp(WIDE, dropout=0.2)),
        Kind("mlp-weight-norm", "digits", lambda: mlp(WIDE, wrap=parametrizations.weight_norm)),
        Kind("mlp-spectral-norm", "digits", lambda: mlp(WIDE, wrap=parametrizations.spectral_norm)),
        Kind("mlp-deep-8", "digits", lambda: mlp([64] * 9 + [10], init=HE), 2e-3, 600),
        Kind("mlp-wide-256", "digits", lambda: mlp([64, 256, 256, 10]), 2e-3),
    )


def _other_layers() -> Iterator[Kind]:
    def around(*parts: nn.Module, width: int = 64) -> nn.Sequential:
        return nn.Sequential(*parts, nn.Linear(width, 10))

    for name, build in (
        ("highway", lambda: around(*[highway(64) for _ in range(3)])),
        ("swiglu", lambda: around(*[swiglu(64, 48) for _ in range(3)])),
        ("maxout", lambda: around(maxout(64, 48), maxout(48, 48), width=48)),
        ("residual-mlp", lambda: around(*[skip(*mlp([64, 64, 64])) for _ in range(3)])),
        ("dense-mlp", lambda: around(dense_block(64, 24), dense_block(88, 24), width=112)),
        ("mixture-of-experts", Experts),
        ("logistic-regression", lambda: nn.Sequential(nn.Linear(64, 10))),
        ("bottleneck-12", lambda: mlp([64, 64, 12, 64, 10])),
    ):
        yield Kind(name, "digits", build)
    yield Kind("dynamic-quantisation", "digits", lambda: mlp(WIDE), after=quantised)
    yield Kind("multi-task", "digit and place", MultiTask)
    yield Kind("autoencoder", "copy", lambda: mlp([64, 48, 12, 48, 64]))
    yield Kind("vae", "copy", VAE)


def _pictures() -> Iterator[Kind]:
    norm = partial(nn.GroupNorm, 4)
    for name, build in (
        ("flatten-mlp", lambda: nn.Sequential(nn.Flatten(), *mlp(WIDE))),
        ("lenet", lambda: nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10))),
        ("cnn-batch-norm", lambda: pooled(conv(1, 16), conv(16, 32, stride=2), width=32)),
        ("cnn-group-norm", lambda: pooled(
            conv(1, 16, norm=norm), conv(16, 32, norm=norm, stride=2), width=32)),
        ("cnn-instance-norm", lambda: pooled(
            conv(1, 16, norm=nn.InstanceNorm2d), conv(16, 32, stride=2), width=32)),
        ("cnn-silu-strided", lambda: pooled(
            conv(1, 16, nn.SiLU), conv(16, 32, nn.SiLU, stride=2), width=32)),
        ("cnn-dilated", lambda: pooled(
            conv(1, 16), conv(16, 24, dilation=2, padding=2), width=24)),
        ("cnn-residual", lambda: pooled(
            conv(1, 16), skip(conv(16, 16), nn.Conv2d(16, 16, 3, padding=1)), width=16)),
        ("depthwise", lambda: pooled(conv(1, 16), separable(16, 24), separable(24, 32), width=32)),
        ("squeeze-excite", lambda: pooled(
            conv(1, 16), squeeze_excite(16), conv(16, 24), squeeze_excite(24), width=24)),
        ("inception", lambda: pooled(inception(1, 8), inception(24, 8), width=24)),
        ("conv-next", lambda: pooled(
            nn.Conv2d(1, 24, 2, 2), next_block(24), next_block(24), width=24)),
        ("mixer", Mixer),
        ("vision-transformer", PatchEncoder),
    ):  # fmt: skip
        yield Kind(name, "images", build)
    yield Kind("u-net", "ink", UNet)
    yield Kind("conv-autoencoder", "copy image", conv_autoencoder)


def _sequences_and_sets() -> Iterator[Kind]:
    yield Kind("rnn-tanh", "lines", lambda: Recurrent(nn.RNN))
    yield Kind("lstm", "lines", lambda: Recurrent(nn.LSTM))
    yield Kind("gru", "lines", lambda: Recurrent(nn.GRU))
    yield Kind("bi-gru-2", "lines", lambda: Recurrent(nn.GRU, 24, num_layers=2, bidirectional=True))
    yield Kind("tcn", "lines", TCN)
    yield Kind("bilstm-tagger", "tags", Tagger, 0.01)
    yield Kind("text-cnn", "topics", TextCNN)
    yield Kind("bag-of-words", "topics", lambda: _Bag())
    yield Kind("encoder", "topics", lambda: Encoder(40, 3), 3e-3, 200)
    yield Kind("encoder-padded", "padded topics", lambda: Encoder(40, 3), 3e-3, 200)
    yield Kind("bert-padded", "padded topics", bert, 2e-3, 200)
    decoder = partial(Encoder, 40, 40, causal=True, mean=False)
    yield Kind("decoder", "next token", decoder, 3e-3, 250)
    yield Kind("deep-sets-sum", "clouds", lambda: DeepSets(lambda h: h.mean(1)))
    yield Kind("point-net-max", "clouds", lambda: DeepSets(lambda h: h.amax(1)))
    yield Kind("graph-net", "graphs", GraphNet)


class _Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(40, 24), mlp([24, 24, 3])

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.net(self.embed(input_ids).mean(1))


def _few_answers() -> Iterator[Kind]:
    two = [20, 64, 32, 2]
    sine = partial(Then, torch.sin)
    for name, job, build in (
        ("two-class-relu", "two classes", lambda: mlp(two)),
        ("two-class-relu-he", "two classes", lambda: mlp(two, init=HE)),
        ("two-class-tanh", "two classes", lambda: mlp(two, nn.Tanh)),
        ("two-class-sigmoid", "two classes", lambda: mlp(two, nn.Sigmoid)),
        ("two-class-batch-norm", "two classes", lambda: mlp(two, norm=nn.BatchNorm1d)),
        ("two-class-deep", "two classes", lambda: mlp([20, 32, 32, 32, 2], nn.GELU)),
        ("three-class", "three classes", lambda: mlp([20, 64, 32, 3])),
        ("iris", "iris", lambda: mlp([4, 32, 32, 3])),
        ("wine", "wine", lambda: mlp([13, 32, 16, 3], nn.Tanh)),
        ("regression", "number", lambda: mlp([10, 64, 32, 1])),
        ("regression-tanh", "number", lambda: mlp([10, 64, 32, 1], nn.Tanh)),
        ("four-regressions", "four numbers", lambda: mlp([10, 64, 32, 4])),
        ("fourier-features", "surface", Fourier),
        ("sine-activations", "surface", lambda: mlp([2, 32, 32, 1], sine)),
        ("wide-and-deep", "table", lambda: Tabular("wide")),
        ("embeddings-and-numbers", "table", lambda: Tabular("deep")),
        ("factorised", "table", lambda: Tabular("factorised")),
        ("siamese", "pairs", Siamese),
    ):
        yield Kind(name, job, build)


def healthy(folder: Path) -> Iterator[Animal]:
    """Yield every kind as a model to scan, trained once and kept in a folder."""

    def scan(kind: Kind) -> Report:
        return sonde.scan(kind.trained(folder), task(kind.task).items(), settings=quiet())

    def learned(kind: Kind) -> float:
        what = task(kind.task)
        held, _ = fifths(len(what.target), SEED)
        return what.score(kind.trained(folder), held)

    for kind in kinds():
        yield Animal(kind.name, partial(scan, kind), partial(learned, kind))
