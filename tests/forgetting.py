"""Digits, and small nets trained on them in the test, for what makes models forget."""

from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return images (row, 1, 8, 8) in [0, 1] in a random order, and their labels."""
    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(found.images / 16.0).float()[:, None]
    return x[order], torch.from_numpy(found.target)[order]


def cnn(x: Tensor, label: Tensor, steps: int, seed: int = 0, rate: float = 0.01) -> nn.Sequential:
    """Return a small net with batch norm, trained by Adam."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        optimiser = torch.optim.Adam(net.parameters(), lr=rate)
        for _ in range(steps):
            chosen = torch.randint(len(x), (128,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), label[chosen]).backward()
            optimiser.step()
    return net.eval()


def accuracy(net: nn.Module, x: Tensor, label: Tensor) -> list[float]:
    """Return the share of each class that is told right."""
    with torch.no_grad():
        right = net(x).argmax(1) == label
    return [float(right[label == c].float().mean()) for c in range(10)]


def items_of(x: Tensor, label: Tensor) -> list[dict[str, Any]]:
    """Return rows as items."""
    return [{"input": row, "label": int(c)} for row, c in zip(x, label, strict=True)]
