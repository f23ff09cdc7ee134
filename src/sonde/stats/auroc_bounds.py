"""AUROC with a confidence bound that is valid near 1, and the rank-sum test's p-value."""

import math
from collections.abc import Callable
from typing import Any

from scipy.special import ndtri
from torch import Tensor

from sonde.stats.auroc import auroc

TINY = 1e-9


def auroc_bounds(value: float, n: int, m: int, tail: float) -> tuple[float, float]:
    """Return the confidence interval of an AUROC, of positive width even at 0 and 1.

    The standard error is that of Hanley and McNeil at the bound itself, with both counts replaced
    by their mean in its pair terms, so that the interval stays inside [0, 1] and has a width even
    if the two sets are separated completely.

    Parameters
    ----------
    value : float
        The area under the ROC curve, in [0, 1].
    n : int
        Number of rows on one side.
    m : int
        Number of rows on the other side.
    tail : float
        Probability outside each end of the interval, such as 0.025.

    References
    ----------
    newcombe2006auc, hanley1982meaning
    """
    z = -float(ndtri(tail))

    def excess(theta: float) -> float:
        return abs(value - theta) - z * _error(theta, n, m)

    bottom, top = TINY, 1 - TINY
    low, high = 0.0, 1.0
    if value > bottom and excess(bottom) > 0:
        low = _root(excess, bottom, min(value, top))
    if value < top and excess(top) > 0:
        high = _root(excess, max(value, bottom), top)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    root: Any = brentq(function, low, high)
    return float(root)


def _error(theta: float, n: int, m: int) -> float:
    pairs = (n + m) / 2 - 1
    spread = 1 + pairs * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return math.sqrt(max(theta * (1 - theta) * spread / (n * m), 0.0))


def rank_p_value(negative: Tensor, positive: Tensor) -> float:
    """Return the one-sided rank-sum p-value against positive rows scoring no higher.

    Parameters
    ----------
    negative : Tensor
        Scores of the rows that should score low.
    positive : Tensor
        Scores of the rows that should score high.
    """
    from scipy.stats import mannwhitneyu

    result = mannwhitneyu(
        positive.double().numpy(),
        negative.double().numpy(),
        alternative="greater",
        method="asymptotic",
    )
    return float(result.pvalue) if math.isfinite(result.pvalue) else 1.0


def separation(negative: Tensor, positive: Tensor) -> float:
    """Return the AUROC in the direction in which it exceeds one half.

    Parameters
    ----------
    negative : Tensor
        Scores of one set of rows.
    positive : Tensor
        Scores of the other set of rows.
    """
    value = auroc(negative, positive).value
    return max(value, 1 - value)
