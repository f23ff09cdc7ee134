"""Digits beside an uninformative pattern, so that the relevant pixels of each image are known."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sonde_studies._digits import pixels, train
from sonde_studies.arms import note

SIDE = 8
PIXELS = 2 * SIDE * SIDE


@dataclass(frozen=True)
class BlockDigits:
    """Images of two blocks, one above the other: a digit, and a framed diagonal.

    Parameters
    ----------
    x : Tensor (row, 1, 16, 8)
        Pixels in [0, 1].
    label : Tensor (row,)
    signal : bool Tensor (row, 16, 8)
        The block of the digit.
    """

    x: Tensor
    label: Tensor
    signal: Tensor

    def part(self, start: int, stop: int) -> "BlockDigits":
        """Return some of the images."""
        chosen = slice(start, stop)
        return BlockDigits(self.x[chosen], self.label[chosen], self.signal[chosen])

    def __len__(self) -> int:
        return len(self.x)


def block_digits(seed: int, n: int | None = None) -> BlockDigits:
    """Return digits in random order, each randomly above or below the same pattern.

    Parameters
    ----------
    seed : int
    n : int, optional
        How many; all 1,797 by default.

    Examples
    --------
    >>> found = block_digits(0, 5)
    >>> found.x.shape, bool((found.x[:, 0][found.signal].reshape(5, 64).sum(1) > 0).all())
    (torch.Size([5, 1, 16, 8]), True)
    """
    draw = np.random.default_rng(seed)
    x, kind = pixels()
    order = draw.permutation(len(x))[:n]
    digit = x[order].reshape(-1, SIDE, SIDE)
    pattern = torch.eye(SIDE)
    pattern[[0, -1]] = pattern[:, [0, -1]] = 1.0
    below = torch.from_numpy(draw.random(len(order)) < 0.5)[:, None, None]
    null = pattern.expand_as(digit)
    top, bottom = torch.where(below, null, digit), torch.where(below, digit, null)
    first = torch.zeros(2 * SIDE, SIDE, dtype=torch.bool)
    first[:SIDE] = True
    signal = torch.where(below, ~first, first)
    picture = torch.cat([top, bottom], dim=1).unsqueeze(1)
    return BlockDigits(picture, torch.from_numpy(kind[order]), signal)


def block_mlp() -> nn.Module:
    """Return an untrained net with one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 256), nn.ReLU(), nn.Linear(256, 10))


def block_cnn() -> nn.Module:
    """Return an untrained convolutional net."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * SIDE * SIDE // 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def trained(
    net: nn.Module, x: Tensor, label: Tensor, seed: int, steps: int = 100, rate: float = 3e-3
) -> nn.Module:
    """Train a net by full-batch steps and return it."""
    train(net, x, label, seed, steps, rate)
    return net


def robust(
    x: Tensor, label: Tensor, seed: int, size: float, steps: int = 100, inner: int = 7
) -> nn.Module:
    """Train the net with one hidden layer adversarially, within an L2 ball of radius ``size``."""
    net = trained(block_mlp(), x, label, seed, steps=1)
    note(rows=len(x))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        moved = torch.zeros_like(x)
        for _ in range(inner):
            moved.requires_grad_(True)
            loss = nn.functional.cross_entropy(net(x + moved), label, reduction="sum")
            (slope,) = torch.autograd.grad(loss, moved)
            step = slope / slope.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
            moved = moved.detach() + 2.5 * size / inner * step
            length = moved.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
            moved = moved * (size / length).clamp(max=1.0)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x + moved), label).backward()
        optimiser.step()
    return net.eval()
