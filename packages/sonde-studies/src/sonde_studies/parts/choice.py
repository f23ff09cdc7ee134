"""The best of several arms on held-out rows; labels that no arm predicts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]

from sonde.core import widen_error

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


def gain_of_best(arms: Mapping[Any, Any], others: Mapping[Any, Any], seed: int) -> Any:
    """Return, row by row, the gain of the best arm over the best other arm.

    Each half of the rows is judged by the arms that were best on the other half: an arm that is
    chosen on the rows that judge it looks better than it is.
    """
    n = len(next(iter(arms.values())))
    half = np.random.default_rng(seed).permutation(n) < n // 2
    gain = np.zeros(n)
    for judged in (half, ~half):
        best, rest = (
            max(side.values(), key=lambda v: v[~judged].mean()) for side in (arms, others)
        )
        gain[judged] = best[judged] * 1.0 - rest[judged]
    return gain
