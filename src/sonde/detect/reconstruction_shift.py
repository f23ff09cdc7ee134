"""Test whether rows leave the reference's subspace of largest variance."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.statistic import Statistic
from sonde.detect._sides import TwoSamples, is_sampled, two_moments, two_sample_reads, two_samples
from sonde.stats import Moments, midranks


@final
@dataclass(frozen=True, kw_only=True)
class ReconstructionComparison(Comparison):
    """The second side's energy outside, over the reference's; ``rank`` directions are inside."""

    rank: int


@renamed(keep="share")
@final
@dataclass(frozen=True)
class ReconstructionShift(Shift):
    """Second side's energy outside the reference's leading directions, over the reference's.

    The fewest directions that hold ``keep`` of the reference's variance span the subspace; energy
    is the mean square from the reference's mean, divided by its total variance. The p-value asks
    whether single rows of the second side lie farther outside than those of the reference: rank
    sum, by permutations, of the sample's rows, against a subspace of the other half of the
    reference's sample, so that no row judges itself.

    Range        [0, inf); higher = more lies outside of the reference's directions; ``null`` is the
                 reference's own share.
    Cost         one pass; state 8 dim^2 bytes and the sample; result O(dim^3).
    Assumes      nothing for the p-value beyond independent groups. One direction: rows that come
                 closer to the subspace are no shift. Nothing is outside of every direction
                 (flag ``saturated``).
    Differs      from a reconstruction by a network: linear, in closed form; relative to the energy
                 of the reference, so that a move inside the subspace does not hide one outside.

    Parameters
    ----------
    keep : float, default=0.9
        Fraction of the variance that the subspace keeps, in (0, 1).
    permutations : int, default=999
        How many; the smallest p-value is one over one more.

    Examples
    --------
    >>> rows = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    >>> flat = rows * torch.tensor([1.0, 1.0, 0.1])
    >>> ReconstructionShift().between(flat[:150], rows[150:]).rank
    2

    References
    ----------
    pearson1901lines, mann1947test
    """

    keep: float = 0.9
    permutations: int = 999
    paper: ClassVar[str] = "pearson1901lines"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"keep": 0.5},
        {"keep": 0.7, "permutations": 199},
    )
    least_rows: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1)", permutations=">= 1")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the moments of all rows, and for the p-value's sample."""
        return {"moments": Moments(), **two_sample_reads()}

    def compare(self, first: Side, second: Side) -> ReconstructionComparison:
        """Return the fraction outside and its p-value."""
        a, b = two_moments("ReconstructionShift", first, second)
        rows = two_samples("ReconstructionShift", first, second)
        basis = self._basis(a.scatter)
        delta = b.mean - a.mean
        moved = b.scatter / b.n + torch.outer(delta, delta)
        p, rank_sum = self._permuted(rows)
        flags = ["sampled"] if is_sampled(first, second) else []
        flags += ["few_rows"] if a.n <= len(delta) else []
        flags += ["saturated"] if basis.shape[1] == len(delta) else []
        return ReconstructionComparison(
            value=_outside(moved, basis, a.covariance),
            null=_outside(a.covariance, basis, a.covariance),
            n=a.n + b.n,
            range=(0.0, math.inf),
            flags=tuple(flags + ["dead"] * (basis.shape[1] == 0)),
            conventions={"share": self.keep, "p": "permutations of ranks of held-out rows"},
            p=p,
            statistic=rank_sum,
            sides=(len(rows.x), len(rows.y)),
            rank=basis.shape[1],
        )

    def _basis(self, scatter: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim rank"]:
        """Return the fewest leading directions with the fraction; none without variance."""
        values, vectors = torch.linalg.eigh(scatter)
        values = values.flip(0).clamp(min=0)
        if not bool(values[0] > 0):
            return vectors[:, :0]
        held = values.cumsum(0) / values.sum()
        return vectors.flip(1)[:, : int((held < self.keep - 1e-12).sum()) + 1]

    def _permuted(self, rows: TwoSamples) -> tuple[float, float]:
        """Return the second side's rank sum and its p-value."""
        half = len(rows.x) // 2
        reference, fresh = rows.x[:half], rows.x[half:]
        # A row whose partner helped to find the subspace cannot be judged by it.
        judged = TwoSamples(rows.y[half:] if rows.paired else rows.y, fresh, rows.paired)
        centred = reference - reference.mean(0)
        basis = self._basis(centred.T @ centred)
        pooled = torch.cat([judged.x, judged.y]) - reference.mean(0)
        outside = (pooled - pooled @ basis @ basis.T).square().sum(1)
        # Where the subspace is everything, what is left of a row is rounding.
        ranks = midranks(outside if basis.shape[1] < pooled.shape[1] else torch.zeros_like(outside))
        shuffled = judged.shuffles(self.permutations).double() @ ranks
        rank_sum = float(ranks[: len(judged.x)].sum())
        return judged.p_value(rank_sum, shuffled), rank_sum


def _outside(
    energy: Float[Tensor, "dim dim"],
    basis: Float[Tensor, "dim rank"],
    reference: Float[Tensor, "dim dim"],
) -> float:
    """Return the energy outside a subspace over the reference's, or inf or 0 if that is 0."""
    inside = float(((energy @ basis) * basis).sum())
    outside = float(energy.diagonal().sum()) - inside
    total = float(reference.diagonal().sum())
    if total > 0:
        return outside / total
    return math.inf if outside > 0 else 0.0
