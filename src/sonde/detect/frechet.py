"""Distance of the two normal distributions with the moments of the data."""

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


@final
@dataclass(frozen=True, kw_only=True)
class FrechetComparison(Comparison):
    """Squared distance; ``means`` is the part from the means, the rest is from covariances."""

    means: float


@final
@dataclass(frozen=True)
class Frechet(Shift):
    """Squared Frechet distance of the normal distributions with the means and covariances.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)``, from the moments of all rows. Few rows
    make it large without any change: ``null`` says how large. The p-value comes from permutations
    of the pooled sample, in the ``rank`` leading directions of both sides together.

    Range        [0, inf), in squared units of the rows; 0 = equal means and covariances, higher =
                 further apart.
    Cost         one pass; state 8 dim^2 bytes and the sample; result O(dim^3) and
                 O(permutations rank^2 sample).
    Assumes      nothing for the p-value beyond independent groups; ``null`` normal rows and many
                 more of them than ``dim`` (else flag ``few_rows``).
    Differs      from the usual score of generated images: any site, divisor n - 1, with a p-value.

    Parameters
    ----------
    rank : int, default=16
        Directions of the permutation test.
    permutations : int, default=499
        How many; the smallest p-value is one over one more.

    Examples
    --------
    >>> rows = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    >>> float(Frechet().between(rows, rows + 2.0).means.__round__(4))
    12.0

    References
    ----------
    dowson1982frechet
    """

    rank: int = 16
    permutations: int = 499
    paper: ClassVar[str] = "dowson1982frechet"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"rank": 2, "permutations": 199})

    def __post_init__(self) -> None:
        check_ranges(self, rank=">= 1", permutations=">= 1")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the moments of all rows, and for the p-value's sample."""
        return {"moments": Moments(), **two_sample_reads()}

    def compare(self, first: Side, second: Side) -> FrechetComparison:
        """Return the distance and its p-value."""
        a, b = two_moments("Frechet", first, second)
        rows = two_samples("Frechet", first, second)
        delta = b.mean - a.mean
        covariances = [m.scatter / (m.n - 1) for m in (a, b)]
        means, n = float(delta.square().sum()), (first.independent, second.independent)
        observed, shuffled = self._permuted(rows)
        flags = ["sampled"] if is_sampled(first, second) else []
        flags += ["few_rows"] if min(n) <= len(delta) else []
        return FrechetComparison(
            value=means + float(bures(*covariances)),
            null=None if rows.paired else _null(a, b, n),
            n=a.n + b.n,
            range=(0.0, math.inf),
            flags=tuple(flags),
            conventions={"divisor": "n - 1", "p": "permutations of the pooled sample"},
            p=rows.p_value(observed, shuffled),
            statistic=observed,
            sides=n,
            means=means,
        )

    def _permuted(self, rows: TwoSamples) -> tuple[float, Float[Tensor, "time"]]:
        """Return the sample's distance in the leading directions, and those of shuffles."""
        pooled = leading_projection(torch.cat([rows.x, rows.y]), self.rank)
        own = torch.arange(len(pooled)) < len(rows.x)
        chosen = torch.cat([own[None], rows.shuffles(self.permutations)])
        distances = _distances(pooled, chosen.double())
        return float(distances[0]), distances[1:]


def bures(a: Float[Tensor, "*time dim dim"], b: Float[Tensor, "*time dim dim"]) -> Tensor:
    """Return ``tr(a + b - 2 (a^1/2 b a^1/2)^1/2)`` of covariances."""
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum(-1)
    traces = a.diagonal(dim1=-2, dim2=-1).sum(-1) + b.diagonal(dim1=-2, dim2=-1).sum(-1)
    return traces - 2 * cross


def _distances(
    rows: Float[Tensor, "row rank"], chosen: Float[Tensor, "time row"]
) -> Float[Tensor, "time"]:
    """Return the distance between the selected and the other rows, for each selection."""
    means, covariances = zip(*(split_moments(rows, c) for c in (chosen, 1 - chosen)), strict=True)
    return (means[0] - means[1]).square().sum(1) + bures(covariances[0], covariances[1])


def _null(a: MomentsState, b: MomentsState, n: tuple[int, int]) -> float:
    """Return the expected value for equal normal distributions, to first order in 1 / n."""
    values = torch.linalg.eigvalsh((a.scatter + b.scatter) / (a.n + b.n - 2)).clamp(min=0)
    sums = values[:, None] + values
    pairs = torch.where(sums > 0, values[:, None] * values / sums, torch.zeros_like(sums))
    spread = (pairs.sum() + pairs.diagonal().sum()) / 2
    return float((values.sum() + spread) * (1 / n[0] + 1 / n[1]))
