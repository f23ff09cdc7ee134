"""Kernel distance of two samples, over all pairs of rows."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.state import LATER
from sonde.core.statistic import Statistic
from sonde.detect._sides import is_sampled, two_sample_reads, two_samples
from sonde.stats.neighbours import distance_chunks


@final
@dataclass(frozen=True)
class MMD(Shift):
    """Squared maximum mean discrepancy of two samples under a Gaussian kernel.

    The mean kernel of two distinct rows of a side, summed over both sides, minus twice the mean
    kernel of two rows of different sides: free of bias. ``biased`` counts each row with itself too,
    so the value is a squared distance and never negative, and ``null`` says what equal
    distributions give. The p-value comes from permutations of the pooled sample, exact at any size.

    Range        [0, 2] but for the noise of an unbiased estimate; ``null`` is 0 = no change;
                 higher = further apart.
    Cost         one pass; state the sample; result O(dim sample^2 + permutations sample^2).
    Assumes      nothing beyond independent groups; one row is taken from each.
    Differs      from random features: exact over the sample, slower, no rows beyond the sample.

    Parameters
    ----------
    sigma : float or None, default=None
        Width of the kernel; None takes the median distance of the pooled sample over the square
        root of two.
    m : int, default=2048
        Most rows of a side.
    permutations : int, default=499
        How many; the smallest p-value is one over one more.
    biased : bool, default=False
        The V-statistic, the squared distance of both samples' means in the kernel's space.

    Examples
    --------
    >>> found = MMD(sigma=1.0).between([[0.0], [1.0], [2.0]], [[1.0], [3.0]])
    >>> round(float(found), 8)
    -0.40387794

    References
    ----------
    gretton2012mmd
    """

    sigma: float | None = None
    m: int = 2048
    permutations: int = 499
    biased: bool = field(default=False, metadata={LATER: True})
    paper: ClassVar[str] = "gretton2012mmd"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"sigma": 2.0, "permutations": 199},
        {"biased": True},
    )

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 2", permutations=">= 1", sigma="> 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the sample."""
        return two_sample_reads(self.m)

    def compare(self, first: Side, second: Side) -> Comparison:
        """Return the distance of the samples and its p-value."""
        rows = two_samples("MMD", first, second)
        pooled = torch.cat([rows.x, rows.y])
        squares = torch.cat([part for _, part in distance_chunks(pooled, pooled)]).square_()
        sigma = _median_sigma(squares) if self.sigma is None else self.sigma
        own = (torch.arange(len(pooled)) < len(rows.x))[None]
        chosen = torch.cat([own, rows.shuffles(self.permutations)])
        kernel = _kernel(squares, sigma)
        discrepancies = _discrepancies(kernel, chosen, self.biased)
        flags = ["sampled"] if is_sampled(first, second) else []
        return Comparison(
            value=float(discrepancies[0]),
            null=None if rows.paired else _null(kernel, len(rows.x), self.biased),
            n=len(pooled),
            range=(0.0, 2.0),
            flags=tuple(flags + ["dead"] * (sigma == 0)),
            conventions={
                "sigma": sigma,
                "biased": self.biased,
                "p": "permutations of the pooled sample",
            },
            p=rows.p_value(float(discrepancies[0]), discrepancies[1:]),
            statistic=float(discrepancies[0]),
            sides=(len(rows.x), len(rows.y)),
        )


def _median_sigma(squares: Float[Tensor, "row row"]) -> float:
    """Return the median heuristic's kernel width from known squared distances."""
    apart = ~torch.eye(len(squares), dtype=torch.bool, device=squares.device)
    return float((squares[apart].median() / 2).sqrt())


def _kernel(squares: Float[Tensor, "row row"], sigma: float) -> Float[Tensor, "row row"]:
    """Return the kernel of all pairs, 0 for a row with itself; width 0 compares for equality."""
    near = squares.div(-2 * sigma * sigma).exp_() if sigma > 0 else (squares == 0).double()
    return near.fill_diagonal_(0.0)


def _discrepancies(
    kernel: Float[Tensor, "row row"],
    chosen: Float[Tensor, "time row"] | Tensor,
    biased: bool = False,
) -> Float[Tensor, "time"]:
    """Return the estimate between the selected and the other rows, for each selection."""
    pick = chosen.to(kernel)
    n = float(pick[0].sum())
    rest = len(kernel) - n
    inner = ((pick @ kernel) * pick).sum(1)
    reach = pick @ kernel.sum(1)
    cross = reach - inner
    outer = kernel.sum() - 2 * reach + inner
    if biased:  # each row with itself has kernel 1
        return (inner + n) / n**2 + (outer + rest) / rest**2 - 2 * cross / (n * rest)
    return inner / (n * (n - 1)) + outer / (rest * (rest - 1)) - 2 * cross / (n * rest)


def _null(kernel: Float[Tensor, "row row"], n: int, biased: bool) -> float:
    """Return the estimate's mean over all splits of the pooled sample."""
    total = len(kernel)
    apart = float(kernel.sum()) / (total * (total - 1))
    return (1 - apart) * (1 / n + 1 / (total - n)) if biased else 0.0
