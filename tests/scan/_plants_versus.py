"""Faults that show in the order of a file or against a second data set, with healthy twins."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sonde
from scan._plants import Plant, digits, net, relabelled, rows, true
from scan._zoo import quiet
from sonde.report import Report

COLUMNS = ("height", "weight", "age", "dose")


def slipped(label: Tensor, _: np.random.Generator) -> Tensor:
    """Return labels that belong to the row before, from the middle of the file on."""
    half = len(label) // 2
    return torch.cat([label[:half], label.roll(1)[half:]])


def rarer(share: float) -> Report:
    """Compare the digits of even rows with those of odd rows of which classes 0 to 3 were thinned.

    Parameters
    ----------
    share : float
        Share of these classes that stays.
    """
    x, label = digits()
    odd = torch.arange(1, len(x), 2)
    draw = torch.from_numpy(np.random.default_rng(0).random(len(odd)))
    odd = odd[(label[odd] > 3) | (draw < share)]
    data, other = rows(x[::2], label[::2]), rows(x[odd], label[odd])
    return sonde.scan(net(), data, versus=other, settings=quiet())


def table(seed: int) -> np.ndarray:
    """Draw the numbers of a table, each column with a mean and a spread of its own."""
    return np.random.default_rng(seed).normal((1.7, 2.2, 0.4, 1.1), (0.1, 0.5, 0.2, 0.6), (400, 4))


def tables(change: Callable[[np.ndarray], np.ndarray]) -> Report:
    """Compare two tables in files, the second of which was changed."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "data.csv", Path(folder) / "other.csv"]
        for file, numbers in zip(files, (table(0), change(table(1))), strict=True):
            np.savetxt(file, numbers, "%.5f", ",", header=",".join(COLUMNS), comments="")
        return sonde.scan(module, str(files[0]), versus=str(files[1]), settings=quiet())


def in_millimetres(numbers: np.ndarray) -> np.ndarray:
    """Return the table with its first column in another unit."""
    return numbers * np.array([1000.0, 1.0, 1.0, 1.0])


PLANTS = (
    Plant("SND049", "warning", lambda: relabelled(slipped), lambda: relabelled(true)),
    Plant("SND054", "note", lambda: rarer(0.2), lambda: rarer(1.0)),
    Plant("SND055", "warning", lambda: tables(in_millimetres), lambda: tables(np.copy)),
)
