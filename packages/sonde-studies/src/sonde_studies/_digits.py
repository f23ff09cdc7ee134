"""Small nets on scikit-learn's digits: six known classes, four near unknown ones, and noise.

``open_set`` takes other small images in their place.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from sonde_studies.arms import note

Architecture = Literal["mlp", "cnn"]
Items = list[dict[str, Any]]

KNOWN, FIT, HELD, FAR, TINY = 6, 500, 250, 500, 60
STEPS = {"mlp": 300, "cnn": 150}
RATE = {"mlp": 1e-3, "cnn": 3e-3}


@dataclass(frozen=True)
class Source:
    """Small grey images of ten classes, and the number of known images for each use.

    Parameters
    ----------
    x : Tensor (image, pixel)
        Pixels in [0, 1], line by line of a square.
    kind : array (image,)
    fit, held : int
    test : int or None
        Most that are tested on, known and near; None is all.
    """

    x: Tensor
    kind: np.ndarray
    fit: int
    held: int
    test: int | None = None

    @property
    def side(self) -> int:
        """Number of pixels in a line."""
        return round(self.x.shape[1] ** 0.5)


@dataclass(frozen=True)
class Digits:
    """A trained net and its data.

    Parameters
    ----------
    model : nn.Module
        Sites ``body`` (last hidden layer) and ``early`` (a layer before), a linear ``head``.
    fit, held, test, near, far : list of dict
        Items ``{"x", "label", "id"}``: what the net was trained on, two fresh parts of known
        digits, digits of other classes, and uniform noise.
    accuracy : float
        On ``test``.
    """

    model: nn.Module
    fit: Items
    held: Items
    test: Items
    near: Items
    far: Items
    accuracy: float


class Net(nn.Module):
    """A first layer, a body that ends in a hidden layer, and a linear head."""

    def __init__(self, early: nn.Module, body: nn.Module, width: int) -> None:
        super().__init__()
        self.early, self.body, self.head = early, body, nn.Linear(width, KNOWN)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (row, 64)."""
        return self.head(self.body(self.early(x)))


class _Image(nn.Module):
    """Reshapes the pixels of a row to a square with one channel."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (1, self.side, self.side))


def net_of(architecture: Architecture, side: int = 8) -> Net:
    """Return an untrained net for images of ``side`` lines."""
    if architecture == "mlp":
        early = nn.Sequential(nn.Linear(side * side, 128), nn.ReLU())
        return Net(early, nn.Sequential(nn.Linear(128, 64), nn.ReLU()), 64)
    early = nn.Sequential(_Image(side), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    wide = 32 * (side // 2) ** 2
    body = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(wide, 64), nn.ReLU()
    )
    return Net(early, body, 64)


@cache
def pixels() -> tuple[Tensor, np.ndarray]:
    """Return the 1,797 digits with pixels in [0, 1], and their labels."""
    found: Any = load_digits()
    return torch.from_numpy(found.data / 16.0).float(), found.target


def shuffled(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the digits and their labels in a random order."""
    x, kind = pixels()
    order = torch.randperm(len(x), generator=draw)
    return x[order], torch.from_numpy(kind)[order]


def encoder(x: Tensor, label: Tensor, width: int, seed: int, steps: int) -> nn.Sequential:
    """Return a net with one hidden layer, trained on images of ten classes."""
    net = nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, 10))
    train(net, x, label, seed, steps, 3e-3)
    return net


def digits(seed: int, architecture: Architecture = "mlp", tiny: bool = False) -> Digits:
    """Train a net on six random digits and return it with its data."""
    return open_set(Source(*pixels(), FIT, HELD), seed, architecture, tiny)


def open_set(
    source: Source, seed: int, architecture: Architecture = "mlp", tiny: bool = False
) -> Digits:
    """Train a net on six random image classes and return it with its data."""
    draw = np.random.default_rng(seed)
    x, kind = source.x, source.kind
    chosen = draw.permutation(10)[:KNOWN]
    known = draw.permutation(np.flatnonzero(np.isin(kind, chosen)))
    label = np.searchsorted(np.sort(chosen), kind[known])
    near = np.flatnonzero(~np.isin(kind, chosen))
    far = torch.from_numpy(draw.uniform(size=(FAR, x.shape[1]))).float()
    model = net_of(architecture, source.side)
    steps = 100 if tiny else STEPS[architecture]
    first, second = source.fit, source.fit + source.held
    train(model, x[known[:first]], torch.from_numpy(label[:first]), seed, steps, RATE[architecture])
    most = TINY if tiny else source.test
    rest = slice(second, None if most is None else second + most)
    near, far = near[:most], far[:most]
    with torch.no_grad():
        said = model(x[known[rest]]).argmax(1).numpy()
    return Digits(
        model,
        _items("fit", x[known[:first]], label[:first]),
        _items("held", x[known[first:second]], label[first:second]),
        _items("test", x[known[rest]], label[rest]),
        _items("near", x[near]),
        _items("far", far),
        float((said == label[rest]).mean()),
    )


def _items(part: str, x: Tensor, label: np.ndarray | None = None) -> Items:
    return [
        {"x": row, "id": f"{part}{i}", "label": -1 if label is None else int(label[i])}
        for i, row in enumerate(x)
    ]


@torch.enable_grad()
def train(model: nn.Module, x: Tensor, label: Tensor, seed: int, steps: int, rate: float) -> None:
    """Draw the weights from a seed, and fit them by full-batch Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.reset_parameters()
    note(rows=len(x))
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimiser.step()
    model.eval()
