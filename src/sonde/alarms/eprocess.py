"""Sequential alarms on a stream of scores, with a guarantee for the whole stream.

Every score is ranked among all earlier ones, calibration and stream, with random ties. While
nothing has changed these p-values are independent and uniform, so that a bet on small ones is a
fair game: wealth that starts at 1 reaches ``1 / delta`` with probability at most ``delta``. Against
a fixed calibration set the p-values all depend on that set, and the promise breaks.
"""

import bisect
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from sonde.alarms._saved import WatchState, load_watch, save_watch
from sonde.core.errors import InputError

NODES = 32
RARE = 0.05
"""Fraction of scores that the bet on rare large scores expects to be large."""
SMALLEST = 2.0**-53
EXPONENTS = (0.125, 0.375, 0.625, 0.875)
"""Exponents of the bets of ``ChangeDetector``, from bold to careful. Each has a sum of its own:
a bold bet loses while a small change lasts, and a mean of bets at each score would lose with it."""


def bet(p: float, kappa: float) -> float:
    """Return the payout ``kappa p^(kappa - 1)`` of a bet on small p-values; its mean is 1.

    Parameters
    ----------
    p : float
        P-value, in (0, 1].
    kappa : float
        Exponent of the bet, in (0, 1); smaller bets more on small p-values.

    Examples
    --------
    >>> round(bet(0.04, 0.5), 6)
    2.5
    """
    return kappa * p ** (kappa - 1)


def mixture_wealth(p: Sequence[float] | np.ndarray) -> Float[np.ndarray, "step"]:
    """Return the wealth after each p-value, divided among 32 bets between 0 and 1.

    Parameters
    ----------
    p : Sequence[float] | numpy.ndarray
        P-values in the order of time, in (0, 1].

    Examples
    --------
    >>> [round(w, 4) for w in mixture_wealth([0.3, 0.02]).tolist()]
    [0.7791, 2.2025]

    References
    ----------
    vovk2021evalues
    """
    kappa, weight = _nodes()
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or not ((values > 0) & (values <= 1)).all():
        raise InputError("mixture_wealth: expected p-values in (0, 1].")
    logs = np.log(kappa) + (kappa - 1) * np.log(values)[:, None]
    return np.exp(np.cumsum(logs, axis=0)) @ weight


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Return the Gauss-Legendre nodes and weights of (0, 1)."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    return (x + 1) / 2, w / 2


@dataclass(frozen=True)
class Watch:
    """The state of a watch after a score of the stream.

    Parameters
    ----------
    p : float
        Randomised rank of the score among all earlier ones.
    wealth : float
        Wealth of the bets so far, or the statistic of the change detector.
    alarm : bool
        Whether the bound is reached: now or before, or at this score alone for the change detector.
    step : int
        Scores seen in the stream.
    """

    p: float
    wealth: float
    alarm: bool
    step: int


class Ranks:
    """Sorted scores, with the randomised rank of the next score.

    ``step`` is how many scores of the stream were ranked before: each took a random number.
    """

    def __init__(self, calibration: Iterable[Any], seed: int, step: int = 0) -> None:
        self.scores = array("d", sorted(_finite_or_infinite(s) for s in calibration))
        self.seed = seed
        self.generator = np.random.Generator(np.random.PCG64(seed).advance(step))

    def p_value(self, score: Any) -> float:
        """Return ``(#{earlier > s} + U (1 + #{earlier = s})) / (n + 1)`` and keep the score."""
        value = _finite_or_infinite(score)
        low, high = bisect.bisect_left(self.scores, value), bisect.bisect_right(self.scores, value)
        n = len(self.scores)
        u = 1.0 - self.generator.random()
        self.scores.insert(high, value)
        return (n - high + u * (1 + high - low)) / (n + 1)


def _finite_or_infinite(score: Any) -> float:
    value = float(score)
    if math.isnan(value):
        raise InputError("alarms: a score is NaN. Score rows that are not finite as +inf.")
    return value


class EProcess:
    """A sequential test of one stream of scores, valid after every score.

    If calibration and stream are exchangeable the chance that it *ever* alarms is at most
    ``delta``, for a stream of any length. Order matters, so its state does not merge; memory grows
    by 8 bytes for each score seen.

    Parameters
    ----------
    calibration : iterable of numbers, default=()
        Scores of rows like the rows of a stream without change; if empty, it learns from the
        stream.
    delta : float, default=0.01
        Chance of a false alarm over the whole stream.
    seed : int, default=0
        Seed of the numbers that break ties between scores.

    Examples
    --------
    >>> watch = EProcess(range(100), delta=0.05)
    >>> [watch.update(s).alarm for s in (50, 120, 130, 140)]
    [False, False, False, True]

    References
    ----------
    vovk2021evalues, vovk2005alrw
    """

    def __init__(
        self, calibration: Iterable[Any] = (), *, delta: float = 0.01, seed: int = 0
    ) -> None:
        if not 0 < delta < 1:
            raise InputError(f"EProcess: expected delta in (0, 1), got {delta}.")
        self.delta = delta
        self._ranks = Ranks(calibration, seed)
        self._logs = np.zeros(NODES)
        self._step, self._alarm = 0, False

    def update(self, score: Any) -> Watch:
        """Add the next score of the stream."""
        kappa, weight = _nodes()
        p = self._ranks.p_value(score)
        self._logs = self._logs + np.log(kappa) + (kappa - 1) * math.log(p)
        top = float(self._logs.max())
        log_wealth = top + math.log(float(np.exp(self._logs - top) @ weight))
        self._step += 1
        self._alarm = self._alarm or log_wealth >= -math.log(self.delta)
        wealth = math.exp(log_wealth) if log_wealth < 700 else math.inf
        return Watch(p, wealth, self._alarm, self._step)

    def save(self, path: str | Path) -> str:
        """Write the state of the stream to one file and return its id."""
        limit, alarm = self.delta, int(self._alarm)
        state = _state(self._ranks, self._logs, limit, self._step, alarm)
        return save_watch(path, "EProcess", state)

    @classmethod
    def load(cls, path: str | Path) -> "EProcess":
        """Read a state that ``save`` wrote and continue the stream from there.

        Raises
        ------
        StateError
            If the file is damaged, or of something else.
        """
        state = load_watch(path, "EProcess", WatchState)
        watch = cls(delta=state.limit, seed=state.seed)
        watch._ranks, watch._step = _ranks(state), state.step
        watch._logs, watch._alarm = state.won.numpy(), bool(state.alarm)
        return watch


class ChangeDetector:
    """Shiryaev-Roberts change detection by a sum of bets, restarted after an alarm.

    ``R_t = (1 + R_(t-1)) e_t`` with ``e_t`` the payout of a bet; an alarm when the mean of ``R``
    over all bets, four for each side, is at least ``patience``. Without change the mean number of
    scores to a false alarm is at least ``patience``. After an alarm the sums start again; the ranks
    go on, so that a lasting change becomes the new normal.

    Parameters
    ----------
    calibration : iterable of numbers, default=()
        Scores of in-distribution rows, against which new scores are ranked.
    patience : float, default=10_000
        Mean number of scores to a false alarm, at least.
    seed : int, default=0
        Seed of the numbers that break ties between scores.
    sides : {"high", "both"}, default="high"
        "high" bets on scores that are too large. "both" bets as well on scores that are too small,
        at both ends, in the middle, or too large in one case of twenty, so scores that look too
        ordinary are a change as well.

    Examples
    --------
    >>> watch = ChangeDetector(range(200), patience=100)
    >>> any(watch.update(s).alarm for s in (100, 20, 300, 310, 320, 330, 340))
    True

    References
    ----------
    vovk2021evalues
    """

    def __init__(
        self,
        calibration: Iterable[Any] = (),
        *,
        patience: float = 10_000,
        seed: int = 0,
        sides: Literal["high", "both"] = "high",
    ) -> None:
        if not patience > 1:
            raise InputError(f"ChangeDetector: expected patience above 1, got {patience}.")
        if sides not in ("high", "both"):
            raise InputError(f"ChangeDetector: expected sides 'high' or 'both', got {sides!r}.")
        self.patience = patience
        self.sides: Literal["high", "both"] = sides
        self._ranks = Ranks(calibration, seed)
        self._sums, self._step = [0.0] * len(_payouts(1.0, sides)), 0

    def update(self, score: Any) -> Watch:
        """Add the next score; ``alarm`` refers to this score only."""
        return self.update_p(self._ranks.p_value(score))

    def update_p(self, p: float) -> Watch:
        """Add the next p-value, for scores that are ranked elsewhere.

        Parameters
        ----------
        p : float
            P-value in (0, 1]; independent of the earlier ones and uniform if nothing changed.
        """
        if not 0 < p <= 1:
            raise InputError(f"ChangeDetector.update_p: expected a p-value in (0, 1], got {p}.")
        self._step += 1
        paid = _payouts(p, self.sides)
        self._sums = [(1 + total) * x for total, x in zip(self._sums, paid, strict=True)]
        reached = sum(self._sums) / len(self._sums)
        if reached >= self.patience:
            self._sums = [0.0] * len(self._sums)
        return Watch(p, reached, reached >= self.patience, self._step)

    def renewed(self, n: int, seed: int) -> "ChangeDetector":
        """Return a restarted detector, calibrated on a random ``n`` of the scores so far.

        Memory stays bounded if a long stream is cut so. Within each part the mean number of scores
        to a false alarm is at least ``patience``.
        """
        seen = np.asarray(self._ranks.scores)
        chosen = np.random.default_rng(seed).permutation(len(seen))[:n]
        return ChangeDetector(seen[chosen], patience=self.patience, seed=seed, sides=self.sides)

    def save(self, path: str | Path) -> str:
        """Write the state of the stream to one file and return its id."""
        state = _state(self._ranks, np.array(self._sums), self.patience, self._step)
        return save_watch(path, "ChangeDetector", state)

    @classmethod
    def load(cls, path: str | Path) -> "ChangeDetector":
        """Read a state that ``save`` wrote and continue the stream from there.

        Raises
        ------
        StateError
            If the file is damaged, or of something else.
        """
        state = load_watch(path, "ChangeDetector", WatchState)
        n = len(state.won)
        is_high = n in (1, len(EXPONENTS))
        watch = cls(patience=state.limit, seed=state.seed, sides="high" if is_high else "both")
        watch._ranks, watch._step = _ranks(state), state.step
        each = len(watch._sums) // n  # earlier versions kept one sum for each side
        watch._sums = [total for total in state.won.tolist() for _ in range(each)]
        return watch


def _payouts(p: float, sides: str) -> list[float]:
    """Return what each bet pays at a p-value; under no change every mean is 1."""
    high = _bets(p)
    if sides == "high":
        return high
    nearest = max(2 * min(p, 1 - p), SMALLEST)
    low, middle = _bets(max(1 - p, SMALLEST)), _bets(max(1 - nearest, SMALLEST))
    rare = [1 - RARE + RARE * x for x in high]
    return [*high, *low, *_bets(nearest), *middle, *rare]


def _bets(p: float) -> list[float]:
    """Return ``bet(p, kappa)`` for each of ``EXPONENTS``, with two powers in place of four."""
    a, b, c, d = EXPONENTS
    first, step = p ** (d - 1), p ** (c - d)
    second = first * step
    third = second * step
    return [a * third * step, b * third, c * second, d * first]


def _state(ranks: Ranks, won: np.ndarray, limit: float, step: int, alarm: int = 0) -> WatchState:
    scores = torch.tensor(ranks.scores, dtype=torch.float64)
    return WatchState(scores, torch.from_numpy(won), float(limit), ranks.seed, step, alarm)


def _ranks(state: WatchState) -> Ranks:
    return Ranks(state.scores.tolist(), state.seed, state.step)
