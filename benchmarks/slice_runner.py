"""Runs in the environment of sliceline: groups of rows on which a model errs, by known columns.

Both get the same errors and the same columns: two of categories, and one number, which sliceline
gets in tenths. Of the rows of one sensor the larger ones err five times as often. What they are
larger than is no cut that either tries.
"""

import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.child import added_peak
from benchmarks.environments import peer_version
from benchmarks.protocol import medians
from sonde.metrics import weak_groups

USUAL, WEAK = 0.08, 0.4


@cache
def planted(seed: int, n: int, weak: bool) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return the columns, what is wrong, and the rows of the weak group."""
    draw = np.random.default_rng(seed)
    sensor, month = draw.choice(list("abcde"), n), draw.choice(range(12), n)
    size = draw.normal(size=n)
    bad = (sensor == "c") & (size > 0.13)
    wrong = draw.random(n) < np.where(bad & weak, WEAK, USUAL)
    columns = {
        "sensor": sensor.tolist(),
        "month": [str(m) for m in month],
        "size": torch.from_numpy(size),
    }
    return columns, torch.from_numpy(wrong).double(), torch.from_numpy(bad)


def ours(columns: dict[str, Any], wrong: Tensor) -> Tensor:
    """Return the members of the worst group that is confirmed."""
    found = weak_groups(wrong, torch.arange(len(wrong)), columns)
    return found[0].rows if found else torch.zeros(0, dtype=torch.int64)


def theirs(columns: dict[str, Any], wrong: Tensor) -> Tensor:
    """Return the members of the slice of the highest score."""
    from sliceline.slicefinder import Slicefinder  # pyright: ignore[reportMissingImports]

    x = np.stack([_coded(values) for values in columns.values()], axis=1)
    found = Slicefinder(alpha=0.95, k=1, max_l=2, min_sup=20, verbose=False)
    found.fit(x, wrong.numpy())
    if len(found.top_slices_) == 0:
        return torch.zeros(0, dtype=torch.int64)
    holds = np.ones(len(x), dtype=bool)
    for j, value in enumerate(found.top_slices_[0]):
        if value is not None:
            holds &= x[:, j] == value
    return torch.from_numpy(np.flatnonzero(holds))


def _coded(values: Any) -> np.ndarray:
    """Return categories as numbers from 1, and numbers by tenths of their rows."""
    if not isinstance(values, Tensor):
        return np.unique(values, return_inverse=True)[1] + 1
    cuts = np.quantile(values.numpy(), np.arange(1, 10) / 10)
    return np.searchsorted(cuts, values.numpy()) + 1


ARMS: dict[str, Callable[[dict[str, Any], Tensor], Tensor]] = {"sonde": ours, "sliceline": theirs}


def compared(seeds: int, n: int) -> dict[str, Any]:
    """Return precision and recall of the planted rows, and how often healthy data name a group."""
    found: dict[str, Any] = {"version": peer_version("sliceline")}
    for arm, run in ARMS.items():
        precision, recall, false = [], [], []
        for seed in range(seeds):
            columns, wrong, bad = planted(seed, n, True)
            named = torch.zeros(n, dtype=torch.bool)
            named[run(columns, wrong)] = True
            right = float((named & bad).sum())
            recall.append(right / float(bad.sum()))
            precision.append(right / max(float(named.sum()), 1.0))
            columns, wrong, _ = planted(seed, n, False)
            false.append(float(len(run(columns, wrong)) > 0))
        found[arm] = {
            "precision": statistics.mean(precision),
            "recall": statistics.mean(recall),
            "false": statistics.mean(false),
        }
    return found


def seconds(rounds: int, n: int) -> dict[str, float]:
    """Return the median seconds of one search of each arm, imports done."""
    columns, wrong, _ = planted(0, n, True)
    return medians({arm: partial(run, columns, wrong) for arm, run in ARMS.items()}, rounds)


def memory(arm: str, n: int) -> float:
    """Return the MiB that one search takes at most."""
    ARMS[arm](*planted(1, n, True)[:2])
    columns, wrong, _ = planted(0, n, True)
    return added_peak(lambda: ARMS[arm](columns, wrong))
