"""Effective rank of the rows from the entropy of their singular values (also known as RankMe).

Counts small directions far more than ``participation_ratio``: the four ranks are different figures
and are never to be compared with each other.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.statistic import Statistic
from sonde.measure._spectra import (
    RankResult,
    Rows,
    Source,
    rank_result,
    spectrum_reads,
)
from sonde.measure.entropy_rank import entropy_lost, exp_entropy
from sonde.stats.white_spectrum import white_mean


@final
@dataclass(frozen=True)
class EffectiveRank(Instrument):
    """Exponential of the entropy of the singular values of the rows.

    ``exp(-sum p ln p)`` with ``p = s / sum s`` over the singular values ``s`` of the matrix of
    rows, by default without taking the mean away, as in the paper. The null is that of white rows.

    Range        [1, dim]; higher = more directions.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3).
    Assumes      more rows than ``dim`` (flag ``few_rows``).
    Differs      from the paper: no small constant is added to the shares.

    Parameters
    ----------
    centered : bool, default=False
        Take the mean row away first.
    source : {"moments", "sample"}, default="moments"
        Second moment of all rows, or the Gram matrix of the hash sample (for very wide sites).

    Examples
    --------
    >>> round(effective_rank([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).value, 6)
    2.0

    References
    ----------
    garrido2023rankme, roy2007effective
    """

    centered: bool = False
    source: Source = "moments"
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "garrido2023rankme"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"centered": True, "source": "sample"})

    def __post_init__(self) -> None:
        check_ranges(self, source=("moments", "sample"))

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for moments or the sample."""
        return spectrum_reads(self.source)

    def result(self, rows: Rows, independent_spectrum: float | None = None) -> RankResult:
        """Compute the entropy of the normalised singular values."""
        conventions = {"entropy": "of singular values"}
        return rank_result(
            rows, _of_singular_values, _white, conventions, self.centered, independent_spectrum
        )


def _of_singular_values(values: Float[Tensor, "rank"]) -> Float[Tensor, ""]:
    return exp_entropy(values.sqrt())


def _white(dim: int, n: int) -> float:
    rank, root = white_mean(torch.sqrt, dim, n)
    product = white_mean(lambda v: torch.xlogy(v.sqrt(), v.sqrt()), dim, n)[1]
    lost = entropy_lost(dim, n) / 4  # a root halves every deviation
    return math.exp(math.log(rank * root) - product / root - lost)


effective_rank = as_function(EffectiveRank)
