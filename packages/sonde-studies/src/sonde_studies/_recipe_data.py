"""Small data and nets for tests of recipes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._digits import pixels, train

Items = list[dict[str, Any]]


def shuffled_digits(seed: int) -> tuple[Tensor, Tensor]:
    """Return all digits with pixels in [0, 1] and their labels, shuffled by a seed."""
    x, kind = pixels()
    order = np.random.default_rng(seed).permutation(len(x))
    return x[order], torch.from_numpy(kind[order])


def items_of(x: Tensor, label: Tensor) -> Items:
    """Return rows as items with a label."""
    return [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]


def learned(module: nn.Module, x: Tensor, label: Tensor, seed: int, steps: int = 200) -> Model:
    """Return a module trained to classify rows."""
    train(module, x, label, seed, steps, 3e-3)
    return Model(module)


def mlp(dim: int, width: int = 64, n_classes: int = 10) -> nn.Sequential:
    """Return an untrained net with two hidden layers."""
    return nn.Sequential(
        nn.Linear(dim, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_classes),
    )


class Part(nn.Module):
    """A net that reads only some columns of a row."""

    def __init__(self, columns: Tensor, net: nn.Module) -> None:
        super().__init__()
        self.net, self.columns = net, nn.Buffer(columns)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of rows (row, dim)."""
        return self.net(x[:, self.columns])
