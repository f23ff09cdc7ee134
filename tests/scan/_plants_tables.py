"""Faults in tables of numbers, with their healthy twins: more plants."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import sonde
from findings._tables import bundled
from scan._plants import Plant
from scan._zoo import quiet
from sonde.report import Report

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


def wine(change: Change = lambda x, _: x, last: str = "") -> Report:
    """Scan a net of random weights over a changed table of wines, read by the columns' names."""
    x, y, names = bundled("wine")
    x = change(x.copy(), y)
    names += [last] if last else []
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(x.shape[1], 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    rows = [{**dict(zip(names, r, strict=True)), "label": int(k)}
            for r, k in zip(x.tolist(), y, strict=True)]  # fmt: skip
    return sonde.scan(module, rows, settings=quiet(only=tuple(f"SND07{i}" for i in range(2, 6))))


def _constant(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    x[::10, 12] = -999
    return x


def _fahrenheit(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.column_stack([x, 1.8 * x[:, 3] + 32])


def _told(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return three weak columns and one that is made from the label."""
    draw = np.random.default_rng(0)
    return np.column_stack([draw.normal(size=(len(x), 13)), y + draw.normal(0, 0.1, len(x))])


def _old(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    age = np.random.default_rng(0).normal(50, 12, len(x))
    age[[3, 8, 90]] = 220.0, 307.0, 433.0
    return np.column_stack([x, age])


class Joined(nn.Module):
    """Two tables that meet in a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(6, 4), nn.Linear(7, 4), nn.Linear(8, 3)

    def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.one(one).tanh(), self.two(two).tanh()], 1))


def joined(change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Report:
    """Scan a net of two tensors, of which the second is changed."""
    x, y, _ = bundled("wine")
    given = torch.from_numpy((x - x.mean(0)) / x.std(0)).float()
    rows = [{"one": a[:6], "two": change(a[6:]), "label": int(k)}
            for a, k in zip(given, y, strict=True)]  # fmt: skip
    return sonde.scan(Joined().eval(), rows, settings=quiet(only=("SND083", "SND085")))


def _some_zero(x: torch.Tensor) -> torch.Tensor:
    """Return a row with entries of no pattern set to 0."""
    return torch.where((x * 1e4).round() % 3 == 0, 0.0, x)


PLANTS = (
    Plant("SND072", "warning", lambda: wine(_constant), wine),
    Plant("SND073", "note", lambda: wine(_fahrenheit, "heat"), wine),
    Plant("SND074", "warning", lambda: wine(_told, "discharge"), wine),
    Plant("SND075", "warning", lambda: wine(_old, "age"), wine),
    Plant("SND083", "error", lambda: joined(torch.zeros_like), joined),
    Plant("SND085", "warning", lambda: joined(_some_zero), joined),
)
