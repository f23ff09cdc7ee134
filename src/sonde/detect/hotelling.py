"""Test whether two means differ, in the metric of the shared covariance."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Float
from scipy.special import betainc
from torch import Tensor

from sonde.core.shift import Comparison, Shift, Side
from sonde.core.statistic import Statistic
from sonde.detect._sides import TwoSamples, are_paired, paired_rows, permutation_p, two_moments
from sonde.detect._tails import signs_tail
from sonde.stats import Moments, MomentsState, inverse_root

SIGNS = 1999


@final
@dataclass(frozen=True, kw_only=True)
class HotellingComparison(Comparison):
    """Squared Mahalanobis distance of two means; ``axis`` is the best separating direction."""

    axis: Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class Hotelling(Shift):
    """Squared distance of two means in the metric of the pooled covariance, with its exact p-value.

    ``value = d^T S^-1 d`` with ``S`` the scatter within both sides over ``n1 + n2 - 2``;
    ``statistic = n1 n2 / (n1 + n2) value``, which for normal rows follows an F distribution with
    ``rank`` and ``n1 + n2 - rank - 1`` degrees of freedom. Sees a moved mean and nothing else.

    If both sides are the same rows and hold a sample of them, ``p`` tests the differences of pairs
    by 1,999 random choices of signs and, if no choice reaches the observed sum, by a bound of the
    tail. Both are valid for every distribution. With fewer than two pairs for each direction the
    metric of the differences is shrunk, since the plain metric would give every choice of signs
    nearly the same sum. Without a sample there is no p-value (flag ``paired``).

    Range        [0, inf), in standard deviations squared; higher = means further apart; ``null`` is
                 its mean under no change.
    Cost         one pass; state 8 dim^2 bytes, shared with every Gaussian method; result O(dim^3).
    Assumes      equal covariances; rows that are normal, or many more than ``dim``; groups of about
                 one size. Fewer rows than dimensions say nothing, fewer pairs than dimensions
                 little (flag ``few_rows``).
    Differs      from the textbook: directions without variance are left out (``rank_deficient``);
                 if the means differ there, the value is infinite.

    Examples
    --------
    >>> import torch
    >>> rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> moved = rows[100:] + torch.tensor([1.0, 0.0, 0.0])
    >>> Hotelling().between(rows[:100], moved).p < 1e-6
    True

    References
    ----------
    hotelling1931, hoeffding1963probability
    """

    paper: ClassVar[str] = "hotelling1931"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the moments of all rows."""
        return {"moments": Moments()}

    def compare(self, first: Side, second: Side) -> HotellingComparison:
        """Return the distance of the means and its p-value."""
        a, b = two_moments("Hotelling", first, second)
        n = (first.independent, second.independent)
        metric = inverse_root(a.scatter + b.scatter, a.n + b.n - 2, 0.0)
        delta = b.mean - a.mean
        white = delta @ metric.root
        size = float(white.square().sum())
        hidden = metric.rank < len(delta) and metric.rank >= a.n + b.n - 2
        if not hidden and _moved_without_variance(delta @ metric.null, a, b):
            size = math.inf
        pairs = paired_rows("Hotelling", first, second)
        blind = pairs is None and are_paired(first, second) and size > 0
        few = hidden or sum(n) - metric.rank - 1 <= 0
        paired = None if pairs is None else _paired_mean(pairs)
        statistic = size * n[0] * n[1] / sum(n)
        flags = ["rank_deficient"] if metric.rank < len(delta) else []
        flags += ["dead"] if metric.rank == 0 else []
        flags += ["few_rows"] if few or (paired and paired.few) else []
        flags += ["paired"] if blind else []
        if paired:
            p = paired.p
        else:
            p = math.nan if few or blind else _p_value(statistic, metric.rank, n)
        return HotellingComparison(
            value=size,
            null=None if paired or blind else _null(n, metric.rank),
            n=a.n + b.n,
            range=(0.0, math.inf),
            flags=tuple(flags),
            conventions={
                "divisor": "n1 + n2 - 2",
                "p": "signs of differences of pairs" if paired else "F distribution",
                "rank": metric.rank,
            },
            p=p,
            statistic=statistic,
            sides=n,
            axis=metric.root @ white,
        )


@dataclass(frozen=True)
class _PairedMean:
    """A p-value, and whether pairs do not outnumber the directions in which they differ."""

    p: float
    few: bool


def _paired_mean(pairs: TwoSamples) -> _PairedMean:
    """Return the p-value of the sum of differences under random signs.

    The sum is measured in a metric of the second moments, which signs do not change. With two pairs
    or more for each direction the plain metric is used: Hotelling's statistic for one sample rises
    with this sum. With fewer pairs, units are divided by their root mean square and their second
    moments are shrunk towards the identity: unshrunk, all signs give the same sum if there are as
    many directions as pairs.
    """
    rows = pairs.y - pairs.x
    metric = inverse_root(rows.T @ rows, len(rows), 0.0)
    if metric.rank == 0:
        return _PairedMean(1.0, few=False)
    white = rows @ metric.root if len(rows) >= 2 * metric.rank else _shrunk(rows)
    size = float(white.sum(0).square().sum())
    shuffled = (pairs.signs(SIGNS) @ white).square().sum(1)
    p = permutation_p(size, shuffled)
    if p == 1 / (1 + SIGNS):
        p = min(p, signs_tail(white))
    return _PairedMean(p, few=len(rows) <= metric.rank)


def _shrunk(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row rank"]:
    """Return rows whitened by the shrunk matrix of their second moments."""
    scale = rows.square().mean(0).sqrt()
    even = rows[:, scale > 0] / scale[scale > 0]
    return even @ inverse_root(even.T @ even, len(even), "oas").root


def _moved_without_variance(
    lost: Float[Tensor, "nullity"], a: MomentsState, b: MomentsState
) -> bool:
    """Return whether the means differ beyond rounding in units without variance."""
    scale = max(float(m.mean.abs().max()) for m in (a, b))
    scale = max(scale, float((a.variance + b.variance).max().sqrt()))
    return bool((lost.abs() > 1e-6 * scale).any()) if len(lost) else False


def _p_value(statistic: float, rank: int, n: tuple[int, int]) -> float:
    """Return the upper tail of the F distribution, computed by the beta distribution."""
    spare = sum(n) - rank - 1
    if rank == 0 or math.isinf(statistic):
        return 0.0 if statistic > 0 else 1.0
    return float(betainc(spare / 2, rank / 2, 1 / (1 + statistic / (sum(n) - 2))))


def _null(n: tuple[int, int], rank: int) -> float | None:
    """Return the expected value for equal means of normal rows."""
    total = sum(n)
    if total - rank - 3 <= 0:
        return None
    return rank * (total - 2) / (total - rank - 3) * total / (n[0] * n[1])
