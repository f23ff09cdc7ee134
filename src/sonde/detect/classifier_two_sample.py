"""Test whether a classifier separates two samples on held-out rows."""

from dataclasses import dataclass
from math import comb
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from scipy.special import bdtrc
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.statistic import Statistic
from sonde.detect._sides import two_sample_reads, two_samples
from sonde.stats import Shrinkage, check_shrinkage, inverse_root


@final
@dataclass(frozen=True, kw_only=True)
class ClassifierComparison(Comparison):
    """Accuracy on held-out rows; ``axis`` is the classifier's weight."""

    axis: Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class ClassifierTwoSample(Shift):
    """Fraction of held-out rows that a linear discriminant classifies correctly.

    Both sides give equally many rows: half to train on, half to test. Given how many test rows the
    classifier puts on the second side, the number of correct ones among them is hypergeometric if
    nothing changed: an exact p-value, whatever the rows and the classifier. If both sides are the
    same rows, a pair that is split between the sides is as often split correctly as wrongly: a sign
    test.

    Range        [0, 1]; ``null`` is one half = both sides are alike; higher = easier to separate.
    Cost         one pass; state the sample; result O(sample dim^2 + dim^3).
    Assumes      nothing beyond independent groups; one row is taken from each.
    Differs      from the paper: a linear classifier in closed form; hypergeometric instead of
                 binomial, because the test rows hold equally many of both sides.

    Parameters
    ----------
    m : int, default=2048
        Most rows of a side.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity mixed into the covariance.

    Examples
    --------
    >>> rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> found = ClassifierTwoSample().between(rows[:100], rows[100:] + 5.0)
    >>> float(found)
    1.0

    References
    ----------
    lopezpaz2017c2st, chen2010oas, mcnemar1947correlated
    """

    m: int = 2048
    shrinkage: Shrinkage = "oas"
    paper: ClassVar[str] = "lopezpaz2017c2st"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"m": 512, "shrinkage": 0.1})
    least_rows: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_shrinkage("ClassifierTwoSample", self.shrinkage)
        check_ranges(self, m=">= 4")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the sample."""
        return two_sample_reads(self.m)

    def compare(self, first: Side, second: Side) -> ClassifierComparison:
        """Train on one half, and test on the other."""
        sampled = two_samples("ClassifierTwoSample", first, second)
        x, y = sampled.x, sampled.y
        half = min(len(x), len(y)) // 2
        axis, origin, dead = _discriminant(x[:half], y[:half], self.shrinkage)
        called = [(rows[half : 2 * half] - origin) @ axis > 0 for rows in (x, y)]
        false, right = (int(rows.sum()) for rows in called)
        n_right = half - false + right
        if sampled.paired:
            p = sign_tail(int((called[1] & ~called[0]).sum()), int((called[1] ^ called[0]).sum()))
        else:
            p = hypergeometric_tail(right, half, false + right)
        return ClassifierComparison(
            value=n_right / (2 * half),
            null=0.5,
            n=len(x) + len(y),
            range=(0.0, 1.0),
            flags=("dead",) if dead else (),
            conventions={
                "tested": 2 * half,
                "p": "sign test of pairs" if sampled.paired else "hypergeometric",
            },
            p=p,
            statistic=float(n_right),
            sides=(len(x), len(y)),
            axis=axis,
        )


def _discriminant(
    x: Float[Tensor, "half dim"], y: Float[Tensor, "half dim"], shrinkage: Shrinkage
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"], bool]:
    """Return weight, midpoint, and whether every direction lacks variance."""
    means = x.mean(0), y.mean(0)
    centred = torch.cat([x - means[0], y - means[1]])
    delta = means[1] - means[0]
    metric = inverse_root(centred.T @ centred, len(centred), shrinkage)
    weight = metric.root @ (delta @ metric.root) if metric.rank else delta
    return weight, (means[0] + means[1]) / 2, metric.rank == 0


def hypergeometric_tail(right: int, half: int, called: int) -> float:
    """Return the chance that ``called`` rows of two equal halves hold ``right`` or more of one.

    Examples
    --------
    >>> round(hypergeometric_tail(3, 4, 4), 6)
    0.242857
    """
    ways = sum(comb(half, k) * comb(half, called - k) for k in range(right, min(half, called) + 1))
    return ways / comb(2 * half, called)


def sign_tail(right: int, pairs: int) -> float:
    """Return the probability of ``right`` or more heads in ``pairs`` fair coin flips.

    Examples
    --------
    >>> sign_tail(3, 3)
    0.125
    """
    return float(bdtrc(right - 1, pairs, 0.5)) if right > 0 else 1.0
