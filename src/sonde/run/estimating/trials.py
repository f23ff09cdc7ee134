"""Trials: the job itself on growing samples, and the line through what they took."""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonde.core.errors import SondeError, SondeWarning
from sonde.core.stream import Stream
from sonde.run.estimating.sampled import amount, sampled

FIRST = 8
ENOUGH_SECONDS = 2.0
"""Seconds that the largest trial takes beyond the smallest, unless data are few."""
SMALLEST_PART = 8
"""A trial reads at most an eighth of the data."""
REPEATED, SHORT_SECONDS = 3, 0.25
"""Runs of a sample size that takes less than this: short runs are noisy."""
KEPT_SIZES = 4
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

    A first trial warms up and is dropped. With ``examples``, the largest has that many.

    Raises
    ------
    SondeError
        What the job raises on the largest sample too: it needs more examples than there are.
    """
    most = max(1, len(stream) // SMALLEST_PART) if len(stream) > 2 * FIRST else len(stream)
    most = most if examples is None else min(most, examples)
    n, done, failed = min(FIRST, most), dict[int, Trial](), None
    while True:
        try:
            if not done:
                _trial(stream, n, 0, work, clock)
            tried = [_trial(stream, n, 1, work, clock)]
            while len(tried) < REPEATED and tried[-1].row_seconds < SHORT_SECONDS:
                tried.append(_trial(stream, n, 1 + len(tried), work, clock))
            # Other work on the machine only adds time. Units of a store may give equal samples.
            done[tried[0].n_examples] = min(tried, key=lambda t: t.row_seconds / t.amount)
        except SondeError as error:
            failed = error
        is_enough = len(done) > 2 and _spent([*done.values()]) >= ENOUGH_SECONDS
        if n >= most or (is_enough and examples is None):
            break
        n = min(2 * n, most)
    if not done and failed is not None:
        raise failed
    return list(done.values())[-KEPT_SIZES:]


def _spent(done: Sequence[Trial]) -> float:
    return done[-1].row_seconds - done[0].row_seconds


def _trial(stream: Stream, n: int, seed: int, work: Work, clock: Clock) -> Trial:
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


def power_of(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent with which a time grows with the rows that are held, in 0 to 3."""
    small, large = (sizes[0], values[0]), (sizes[-1], values[-1])
    if large[0] <= small[0] or min(small[1], large[1]) <= 0:
        return 0.0
    slope = np.log(large[1] / small[1]) / np.log(large[0] / small[0])
    return float(np.clip(slope, 0.0, 3.0))


def bounds_of(
    trials: Sequence[Trial], total: Callable[[Sequence[Trial]], float]
) -> tuple[float, float]:
    """Return the range of totals if one trial at a time is left out, and a tenth beyond it."""
    totals = [total(trials)]
    if len(trials) > 2:
        totals += [total([t for t in trials if t is not left]) for left in trials]
    return min(totals) * (1 - WIDENED), max(totals) * (1 + WIDENED)
