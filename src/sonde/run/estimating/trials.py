"""Trials: the job itself on growing samples, and the line through what they took."""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import nnls  # pyright: ignore[reportUnknownVariableType]

from sonde.core.errors import SondeError, SondeWarning
from sonde.core.stream import Stream
from sonde.run.estimating.sampled import amount, sampled

FIRST = 8
ENOUGH_SECONDS = 2.0
"""Seconds that the largest trial takes beyond the smallest, unless data are few."""
SMALLEST_PART = 8
"""A trial reads at most an eighth of the data."""
ROUNDS = 5
"""Runs of each size that is kept, unless all runs together take ``ENOUGH_SECONDS`` before."""
KEPT_SIZES = 5
SIMPLER = 0.1
"""Relative residuals below which a law with a lower power is kept."""
WIDENED = 0.1

Clock = Callable[[], float]
Work = Callable[[Stream, Path], float]
"""Runs a job on a stream, in an empty folder; returns the seconds of what follows the rows."""


@dataclass(frozen=True)
class Trial:
    """What one run of the job on a sample took.

    Parameters
    ----------
    n_examples : int
    amount : float
        Tokens, or examples if their lengths are unknown.
    row_seconds : float
        Time of the passes over the rows.
    end_seconds : float
        Time of results, which are taken once.
    disk_bytes : int
        Size of the files that it left.
    """

    n_examples: int
    amount: float
    row_seconds: float
    end_seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class Line:
    """A quantity as ``start + rate * amount``.

    Parameters
    ----------
    start : float
    rate : float
    """

    start: float
    rate: float

    def at(self, amount: float) -> float:
        """Return the value at an amount of data."""
        return self.start + self.rate * amount


def run_trials(
    stream: Stream, work: Work, examples: int | None = None, clock: Clock = time.perf_counter
) -> list[Trial]:
    """Run a job on samples of doubling size until the largest takes long enough.

    A first trial warms up and is dropped. With ``examples``, the largest has that many. Short
    trials are repeated in turn, size after size, so that other work on the machine slows down all
    sizes; the fastest of each size is returned, since other work only adds time.

    Raises
    ------
    SondeError
        What the job raises on the largest sample too: it needs more examples than there are.
    """
    most = max(1, len(stream) // SMALLEST_PART) if len(stream) > 2 * FIRST else len(stream)
    most = most if examples is None else min(most, examples)
    n, tried, failed = min(FIRST, most), dict[int, list[Trial]](), None
    while True:
        try:
            if not tried:
                run_trial(stream, n, work, clock, seed=0)
            trial = run_trial(stream, n, work, clock)
            tried[trial.n_examples] = [trial]  # units of a store may give equal samples
        except SondeError as error:
            failed = error
        is_enough = len(tried) > 2 and _spent([some[0] for some in tried.values()])
        if n >= most or (is_enough and examples is None):
            break
        n = min(2 * n, most)
    if not tried and failed is not None:
        raise failed
    kept = list(tried.values())[-KEPT_SIZES:]
    for seed in range(2, 1 + ROUNDS):
        if sum(trial.row_seconds + trial.end_seconds for some in kept for trial in some) > (
            ENOUGH_SECONDS
        ):
            break
        for some in kept:
            with suppress(SondeError):
                some.append(run_trial(stream, some[0].n_examples, work, clock, seed))
    return [_fastest(some) for some in kept]


def _spent(trials: Sequence[Trial]) -> bool:
    return trials[-1].row_seconds - trials[0].row_seconds >= ENOUGH_SECONDS


def _fastest(trials: Sequence[Trial]) -> Trial:
    """Return the trial of least time for each row, with the least time of results."""
    first = min(trials, key=lambda t: t.row_seconds / t.amount)
    return replace(first, end_seconds=min(t.end_seconds for t in trials))


def run_trial(stream: Stream, n: int, work: Work, clock: Clock, seed: int = 1) -> Trial:
    """Run a job on a sample of about ``n`` examples, in a folder that is removed."""
    part = sampled(stream, n, seed)
    with tempfile.TemporaryDirectory(prefix="sonde-estimate-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        began = clock()
        end = work(part, Path(name))
        seconds = clock() - began
        files = (path for path in Path(name).rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
    return Trial(len(part), amount(part), seconds - end, end, size)


def line_through(amounts: Sequence[float], values: Sequence[float]) -> Line:
    """Return the line of least relative squares, whose start is not negative."""
    x, y = np.asarray(amounts, dtype=float), np.asarray(values, dtype=float)
    if len(x) > 1 and x.max() > x.min() and y.max() > 0:
        scale = 1 / np.maximum(y, 1e-9)
        design = np.stack([np.ones_like(x), x], axis=1) * scale[:, None]
        start, rate = np.linalg.lstsq(design, y * scale, rcond=None)[0]
        if start >= 0 and rate >= 0:
            return Line(float(start), float(rate))
        if rate < 0:
            return Line(float(y.mean()), 0.0)
    return Line(0.0, float(y[-1] / x[-1]))


def growth_of(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """Return a time at a size, in times of that of the last size.

    The law is a constant and a power of 1, 2 or 3 of the size, neither of them negative. A higher
    power is taken only if it halves the residuals and they exceed ``SIMPLER``.
    """
    y = np.asarray(values, dtype=float)
    if len(y) < 2 or max(sizes) <= min(sizes) or y.min() <= 0:
        return 1.0
    best, least = 1.0, np.inf
    for power in (1, 2, 3):
        x = (np.asarray(sizes, dtype=float) / sizes[-1]) ** power
        start, rate = nnls(np.stack([1 / y, x / y], axis=1), np.ones_like(y))[0]
        off = float(np.sqrt(np.mean(((start + rate * x) / y - 1) ** 2)))
        if off < least / 2 and least > SIMPLER:
            least = off
            best = (start + rate * (size / sizes[-1]) ** power) / max(start + rate, 1e-12)
    return float(best)


def bounds_of(
    trials: Sequence[Trial], total: Callable[[Sequence[Trial]], float]
) -> tuple[float, float]:
    """Return the range of totals if one trial at a time is left out, and a tenth beyond it."""
    totals = [total(trials)]
    if len(trials) > 2:
        totals += [total([t for t in trials if t is not left]) for left in trials]
    return min(totals) * (1 - WIDENED), max(totals) * (1 + WIDENED)
