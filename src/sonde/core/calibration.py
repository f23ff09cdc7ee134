"""Held-out scores, converted to p-values and to thresholds at a false-alarm rate."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betainc, betaincinv  # pyright: ignore
from torch import Tensor

from sonde.core.errors import CalibrationError, InputError
from sonde.core.ranges import check_ranges
from sonde.core.state import State

Guarantee = Literal["marginal", "pac"]


@dataclass(frozen=True)
class Calibration(State):
    """Split-conformal calibration of a detector.

    If calibration and new rows are exchangeable, a row raises a false alarm at level ``alpha`` with
    probability at most ``alpha``, whatever the detector and with ties. ``marginal`` promises this
    on average over calibration sets. ``pac`` promises it for this calibration set, with probability
    ``1 - delta`` for each single level. Thresholds and p-values raise the same alarms. If rows come
    in groups, the scores are one of each group, and the promise is for one row of each new group:
    over all rows of groups whose scores depend on their size the rate may be higher.

    Parameters
    ----------
    scores : Float[Tensor, "n"]
        Scores of held-out rows, float64; kept in ascending order.
    guarantee : {"marginal", "pac"}, default="marginal"
        Promise about the rate of false alarms: ``marginal`` keeps it in the mean over calibration
        sets, ``pac`` keeps it for this calibration set, with probability ``1 - delta``.
    delta : float, default=0.05
        Probability that a ``pac`` promise may fail.

    Examples
    --------
    >>> c = Calibration.from_scores([0.1, 0.2, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.1])
    >>> [round(p, 6) for p in c.p_value([0.05, 0.2, 0.6, 2.0]).tolist()]
    [1.0, 0.9, 0.5, 0.1]

    References
    ----------
    vovk2005alrw, bates2023outliers
    """

    scores: Float[Tensor, "n"]
    guarantee: Guarantee = "marginal"
    delta: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, guarantee=get_args(Guarantee), delta="(0, 1)")
        values = torch.as_tensor(self.scores, dtype=torch.float64).flatten()
        if values.numel() == 0:
            raise CalibrationError("Calibration: expected at least one score, got none.", 1)
        if bool(values.isnan().any()):
            raise InputError("Calibration: a held-out score is NaN.")
        if bool((values[1:] < values[:-1]).any()):
            values = values.sort().values
        object.__setattr__(self, "scores", values)

    @classmethod
    def from_scores(
        cls, scores: Any, guarantee: Guarantee = "marginal", delta: float = 0.05
    ) -> "Calibration":
        """Return the calibration from scores of rows that were not used to fit.

        Raises
        ------
        CalibrationError
            If there is no score.
        InputError
            If a score is NaN.
        """
        return cls(torch.as_tensor(scores, dtype=torch.float64), guarantee, delta)

    @property
    def n(self) -> int:
        """Number of held-out scores."""
        return self.scores.numel()

    def p_value(self, scores: Any) -> Float[Tensor, "row"]:
        """Return the p-value of each score, in (0, 1]: the smallest level at which it alarms.

        With ``k = 1 + #{held-out >= score}``, ``marginal`` gives ``k / (n + 1)``. ``pac`` gives the
        ``1 - delta`` quantile of ``Beta(k, n + 1 - k)`` if that is larger: a bound on the share of
        rows that score this high. It gives 1 if ``k`` is ``n + 1``. A NaN score is an error.
        """
        values = flat_scores("Calibration", scores)
        below = np.searchsorted(self._sorted, values)
        levels = levels_of_ranks(1 + self.n - below, self.n, self.guarantee, self.delta)
        return torch.from_numpy(levels).to(self.scores.device)  # pyright: ignore

    @cached_property
    def _sorted(self) -> np.ndarray:
        # a copy: workers move the tensor to shared memory, and a view would read what was freed
        return self.scores.detach().cpu().numpy().copy()

    def alarms_allowed(self, alpha: float) -> int:
        """Return the number of held-out scores allowed above the threshold for level ``alpha``."""
        if not 0.0 < alpha < 1.0:
            raise InputError(f"Calibration: expected alpha in (0, 1), got {alpha}.")
        rank = math.floor(alpha * (self.n + 1) + 1e-9)
        if self.guarantee == "marginal":
            return rank
        while rank > 0 and _below(alpha, rank, self.n + 1 - rank) < 1.0 - self.delta:
            rank -= 1
        return rank

    def needed(self, alpha: float) -> int:
        """Return the smallest number of held-out scores that makes level ``alpha`` possible."""
        return needed_scores(alpha, self.guarantee, self.delta)

    def threshold(self, alpha: float) -> float:
        """Return the threshold for false-alarm rate ``alpha``; only higher scores are alarms.

        Raises
        ------
        CalibrationError
            If there are too few held-out scores; ``.needed`` says how many it takes.
        """
        rank = self.alarms_allowed(alpha)
        if rank == 0:
            needed = self.needed(alpha)
            raise CalibrationError(
                f"Calibration.threshold: level {alpha:g} needs at least {needed} held-out scores "
                f"({self.guarantee}), got {self.n}. Hold out more rows or raise the level.",
                needed,
            )
        return float(self.scores[self.n - rank])

    def rate_interval(self, alpha: float, confidence: float = 0.9) -> tuple[float, float]:
        """Return an interval for the true false-alarm rate, given this calibration set."""
        rank = self.alarms_allowed(alpha)
        tail = (1.0 - confidence) / 2
        if rank == 0:
            return 0.0, 0.0
        a, b = rank, self.n + 1 - rank
        return _quantile(tail, a, b), _quantile(1.0 - tail, a, b)


def needed_scores(alpha: float, guarantee: Guarantee, delta: float) -> int:
    """Return the smallest number of held-out scores that makes level ``alpha`` possible."""
    if guarantee == "marginal":
        return math.ceil(1.0 / alpha - 1e-9) - 1
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def flat_scores(owner: str, scores: Any) -> np.ndarray:
    """Return scores as a flat NumPy array, which is faster than torch for a few scores.

    Raises
    ------
    InputError
        If one of them is NaN.
    """
    values = torch.as_tensor(scores, dtype=torch.float64).flatten().detach().cpu().numpy()
    if np.isnan(values).any():
        raise InputError(f"{owner}.p_value: a score is NaN.")
    return values


def levels_of_ranks(rank: np.ndarray, n: int, guarantee: Guarantee, delta: float) -> np.ndarray:
    """Return the smallest level that allows ``rank - 1`` of ``n`` scores above the threshold.

    Ranks are 1 to ``n + 1``; the last, below every score, has level 1.
    """
    marginal = rank / (n + 1)
    if guarantee == "marginal":
        return marginal
    distinct, place = np.unique(rank, return_inverse=True)
    inside = np.minimum(distinct, n)
    level = np.where(distinct > n, 1.0, betaincinv(inside, n + 1 - inside, 1.0 - delta))
    return np.maximum(level[place], marginal)


def _below(x: float, a: int, b: int) -> float:
    """Return the cumulative distribution function of a beta variable at ``x``."""
    return float(betainc(a, b, x))


def _quantile(q: float, a: int, b: int) -> float:
    """Return the ``q``-quantile of a beta variable."""
    return float(betaincinv(a, b, q))
