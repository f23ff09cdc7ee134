"""The best of several arms on held-out rows; labels that no arm predicts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]

from sonde.core import widen_error

HALVES = 4000
"""Pairs of halves that are drawn for their correlation, which is known to 0.02."""
NOT_TOLD = "the label is not told"
"""The verdict if no arm is better than naming one class for all rows."""


def unless_untold(
    verdict: str, arms: Mapping[str, Any], label: Any, *, is_bad: bool = False
) -> dict[str, Any]:
    """Return an answer's verdict and level; a warning if no arm predicts the label."""
    is_known = is_told(arms, label)
    level = "clear" if is_known and not is_bad else "warning"
    return {"verdict": verdict if is_known else NOT_TOLD, "level": level}


def balanced(right: Any, label: Any) -> tuple[float, float]:
    """Return the mean recall over classes, and its standard error over rows.

    Classes of few rows widen it by Student's t, at Welch's degrees of freedom. A class of one row
    has the largest variance that a fraction can have.
    """
    own = [np.asarray(right)[np.asarray(label) == c] * 1.0 for c in np.unique(label)]
    rest = np.array([max(len(r) - 1, 1) for r in own])
    parts = np.array([r.var(ddof=1) / len(r) if len(r) > 1 else 0.25 for r in own])
    freedom = parts.sum() ** 2 / (np.square(parts) / rest).sum() if parts.any() else rest.sum()
    error = widen_error(float(np.sqrt(parts.sum())) / len(own), float(freedom) + 1)
    return float(np.mean([r.mean() for r in own])), error


def is_told(arms: Mapping[str, Any], label: Any) -> bool:
    """Return whether the best arm predicts the classes, at 5 % over all arms together.

    Balanced accuracy is compared with 1 over the number of classes: an arm that names the most
    frequent class reaches no more.
    """
    n_classes = len(np.unique(label))
    bound = float(ndtri(1 - 0.05 / len(arms)))
    return any(
        value - bound * max(error, 0.5 / len(label)) > 1 / n_classes
        for value, error in (balanced(right, label) for right in arms.values())
    )


def gain_of_best(
    arms: Mapping[Any, Any], others: Mapping[Any, Any], seed: int
) -> tuple[Any, float]:
    """Return, row by row, the gain of the best arm over the best other arm, and a correlation.

    Each half of the rows is judged by the arms that were best on the other half: an arm that is
    chosen on the rows that judge it looks better than it is. The second value is the correlation
    of the halves' mean gains, ``correlation_of_halves``.
    """
    n = len(next(iter(arms.values())))
    half = np.random.default_rng(seed).permutation(n) < n // 2
    gain = np.zeros(n)
    for judged in (half, ~half):
        best, rest = (
            max(side.values(), key=lambda v: v[~judged].mean()) for side in (arms, others)
        )
        gain[judged] = best[judged] * 1.0 - rest[judged]
    return gain, correlation_of_halves(arms, others, seed)


def correlation_of_halves(arms: Mapping[Any, Any], others: Mapping[Any, Any], seed: int) -> float:
    """Return the correlation of the mean gains of two halves that choose for each other.

    Where no arm is better than another, each half's luck decides which arm the other half judges,
    so both gains follow both halves. For k independent arms against a constant it is
    ``(E max)^2 / (k - 1)``, with E max the expected largest of k standard normal numbers; for arms
    that err on the same rows it is found by drawing means of halves with their covariance.
    """
    values = np.array([np.asarray(v, float) for side in (arms, others) for v in side.values()])
    spread = np.atleast_2d(np.cov(values))
    draw = np.random.default_rng(seed)
    mean = np.zeros(len(values))
    one, two = draw.multivariate_normal(mean, spread, (2, HALVES), check_valid="ignore")
    rows, n_arms = np.arange(HALVES), len(arms)

    def judged(own: Any, by: Any) -> Any:
        """Return the gains on one half of the arms that the other half chose."""
        best, rest = by[:, :n_arms].argmax(1), by[:, n_arms:].argmax(1) + n_arms
        return own[rows, best] - own[rows, rest]

    first, second = judged(one, two), judged(two, one)
    size = np.sqrt(np.mean(first**2) * np.mean(second**2))
    return max(0.0, float(np.mean(first * second) / size)) if size > 0 else 0.0
