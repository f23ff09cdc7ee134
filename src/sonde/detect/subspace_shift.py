"""Angles between the leading directions of two data sets."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.statistic import Statistic
from sonde.detect._sides import (
    TwoSamples,
    is_sampled,
    leading_projection,
    split_moments,
    two_moments,
    two_sample_reads,
    two_samples,
)
from sonde.stats import Moments, MomentsState
from sonde.stats.normal_equations import GRAM_CUT

WIDE = 32


@final
@dataclass(frozen=True, kw_only=True)
class SubspaceComparison(Comparison):
    """Mean squared sine of the principal angles between two leading subspaces.

    ``angles`` are in degrees, in ascending order; ``axis`` is the unit vector along which the
    second subspace leaves the first most.
    """

    angles: Float[Tensor, "rank"]
    axis: Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class SubspaceShift(Shift):
    """Principal angles between the leading directions of two data sets, with a p-value.

    The ``rank`` leading directions of each side's covariance span its subspace; ``value`` is the
    mean of the squared sines of the angles between both. If two leading variances are nearly equal,
    a subspace turns even without a change. The p-value accounts for this: it comes from shuffles of
    the rows, each side about its own mean, in the 32 (or ``2 rank``) leading directions of both
    sides.

    Range        [0, 1]; 0 = equal subspaces, 1 = orthogonal; ``null`` is the mean over the
                 shuffles where the sample is every row.
    Cost         one pass; state 8 dim^2 bytes and the sample; result O(dim^3) and
                 O(permutations rank^2 sample).
    Assumes      independent groups; means that are well known (tens of rows). Blind to a moved mean
                 and to a spread that grows alike in all directions.
    Differs      from angles alone: with a p-value. At most half of the directions are taken; no
                 angle is left at one dimension (flag ``saturated``).

    Parameters
    ----------
    rank : int, default=4
        Leading directions of each side.
    permutations : int, default=499
        How many; the smallest p-value is one over one more.

    Examples
    --------
    >>> rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    >>> wide = rows * torch.tensor([5.0, 1.0, 1.0, 1.0])
    >>> found = SubspaceShift(rank=1).between(wide[:200], wide[200:].roll(1, 1))
    >>> bool(found.angles > 80), int(found.axis.abs().argmax())
    (True, 1)

    References
    ----------
    bjorck1973angles
    """

    rank: int = 4
    permutations: int = 499
    paper: ClassVar[str] = "bjorck1973angles"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"rank": 1, "permutations": 199})

    def __post_init__(self) -> None:
        check_ranges(self, rank=">= 1", permutations=">= 1")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the moments of all rows, and for the p-value's sample."""
        return {"moments": Moments(), **two_sample_reads()}

    def compare(self, first: Side, second: Side) -> SubspaceComparison:
        """Return the angles and their p-value."""
        a, b = two_moments("SubspaceShift", first, second)
        rows = two_samples("SubspaceShift", first, second)
        sampled, rank = is_sampled(first, second), self._rank(a, b)
        angles, axis = _principal(_basis(a.scatter, rank), _basis(b.scatter, rank))
        value = float(angles.sin().square().mean()) if rank else 0.0
        observed, shuffled = self._permuted(rows, rank)
        other_rows = (a.n, b.n) != (len(rows.x), len(rows.y))
        flags = ["sampled"] if sampled else []
        flags += ["saturated"] if len(a.mean) == 1 else ["dead"] if rank == 0 else []
        return SubspaceComparison(
            value=value,
            null=None if sampled or other_rows else float(shuffled.mean()),
            n=a.n + b.n,
            range=(0.0, 1.0),
            flags=tuple(flags),
            conventions={"rank": rank, "p": "permutations about the own mean"},
            p=rows.p_value(observed, shuffled),
            statistic=observed,
            sides=(first.independent, second.independent),
            angles=angles.rad2deg(),
            axis=axis,
        )

    def _rank(self, a: MomentsState, b: MomentsState) -> int:
        """Return the number of leading directions in which both sides vary."""
        ranks = [_rank_of(m.scatter) for m in (a, b)]
        return min(self.rank, len(a.mean) // 2, *ranks)

    def _permuted(self, rows: TwoSamples, rank: int) -> tuple[float, Float[Tensor, "time"]]:
        """Return the sample's value in the leading directions, and those of shuffles."""
        if rank == 0:
            return 0.0, torch.zeros(self.permutations, dtype=torch.float64)
        own = torch.cat([rows.x - rows.x.mean(0), rows.y - rows.y.mean(0)])
        pooled = leading_projection(own, max(WIDE, 2 * self.rank))
        first = torch.arange(len(pooled)) < len(rows.x)
        chosen = torch.cat([first[None], rows.shuffles(self.permutations)]).double()
        angles = torch.cat([_apart(pooled, part, rank) for part in chosen.split(500)])
        return float(angles[0]), angles[1:]


def _rank_of(scatter: Float[Tensor, "dim dim"]) -> int:
    return int(torch.linalg.matrix_rank(scatter, rtol=GRAM_CUT, hermitian=True))


def _basis(scatter: Float[Tensor, "*time dim dim"], rank: int) -> Float[Tensor, "*time dim rank"]:
    """Return the leading directions as columns."""
    vectors = torch.linalg.eigh(scatter).eigenvectors
    return vectors[..., vectors.shape[-1] - rank :]


def _principal(
    a: Float[Tensor, "dim rank"], b: Float[Tensor, "dim rank"]
) -> tuple[Float[Tensor, "rank"], Float[Tensor, "dim"]]:
    """Return the angles (small ones from sines), and the direction with the largest angle."""
    if a.shape[1] == 0:
        return a.new_zeros(0), a.new_zeros(len(a))
    cosines = torch.linalg.svdvals(a.T @ b).clamp(max=1.0)
    outside = b - a @ (a.T @ b)
    left, sines, _ = torch.linalg.svd(outside, full_matrices=False)
    sines = sines.clamp(max=1.0).flip(0)
    angles = torch.where(sines.square() < 0.5, sines.asin(), cosines.acos())
    lost = float(sines[-1]) > math.sqrt(torch.finfo(a.dtype).eps)
    return angles, left[:, 0] if lost else torch.zeros_like(left[:, 0])


def _apart(
    rows: Float[Tensor, "row wide"], chosen: Float[Tensor, "time row"], rank: int
) -> Float[Tensor, "time"]:
    """Return the mean squared sine between selected and other rows, for each selection."""
    rank = min(rank, rows.shape[1])
    one, other = (_basis(split_moments(rows, c)[1], rank) for c in (chosen, 1 - chosen))
    return 1 - (one.mT @ other).square().sum((-2, -1)) / rank
