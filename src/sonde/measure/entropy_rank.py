"""Effective number of directions from the variance's entropy (von Neumann entropy).

Weighs small eigenvalues more than ``participation_ratio`` and less than ``effective_rank``, which
takes singular values instead.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.measure._spectra import RankResult, Rows, SpectrumInstrument, rank_result
from sonde.stats.white_spectrum import white_mean


@final
@dataclass(frozen=True)
class EntropyRank(SpectrumInstrument):
    """Exponential of the entropy of the eigenvalues of the covariance.

    ``exp(-sum p ln p)`` with ``p = l / sum l``: ``d`` equal directions give ``d``. The null is that
    of white rows, from the law of their eigenvalues.

    Range        [1, dim]; higher = more directions.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3).
    Assumes      more rows than ``dim`` (flag ``few_rows``).
    Differs      from the paper: of the covariance, so of squared singular values.

    Parameters
    ----------
    source : {"moments", "sample"}, default="moments"
        Covariance of all rows, or the Gram matrix of the hash sample (for very wide sites).

    Examples
    --------
    >>> round(entropy_rank([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).value, 6)
    2.0

    References
    ----------
    roy2007effective
    """

    paper: ClassVar[str] = "roy2007effective"

    def result(self, rows: Rows, independent_spectrum: float | None = None) -> RankResult:
        """Compute the entropy of the normalised eigenvalues."""
        return rank_result(
            rows, exp_entropy, _white, {"entropy": "of variances"}, independent=independent_spectrum
        )


def exp_entropy(weights: Float[Tensor, "rank"]) -> Float[Tensor, ""]:
    """Return the exponential of the entropy of normalised positive weights."""
    share = weights / weights.sum()
    return torch.exp(-torch.xlogy(share, share).sum())


def _white(dim: int, n: int) -> float:
    rank, product = white_mean(lambda v: torch.xlogy(v, v), dim, n)
    return math.exp(math.log(dim) - rank * product / dim - entropy_lost(dim, n))


def entropy_lost(dim: int, n: int) -> float:
    """Return by how many nats the entropy of ``n`` white rows is below its limit.

    The eigenvalues of finitely many directions vary more, by the second-order term of the entropy.
    """
    few = min(dim, n)
    return max(0.0, 0.5 - 1 / few) / max(dim, n)


entropy_rank = as_function(EntropyRank)
