"""Total variance divided by the largest direction's variance.

Says how far the first direction stands out, nothing about the rest of the spectrum.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.core.function import as_function
from sonde.measure._canonical import wishart
from sonde.measure._spectra import RankResult, Rows, SpectrumInstrument, rank_result
from sonde.stats.white_spectrum import white_largest

DRAWN, DRAWS = 24, 200


@final
@dataclass(frozen=True)
class StableRank(SpectrumInstrument):
    """Total variance over the variance of the widest direction.

    ``sum l / max l`` over the eigenvalues ``l`` of the covariance: never above the rank, and moved
    little by directions of little variance. The null is ``dim`` over the expected largest
    eigenvalue of white rows: about ``(1 + sqrt(dim / n))^2``, less for few dimensions.

    Range        [1, dim]; higher = no direction stands out.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3).
    Assumes      more rows than ``dim`` (flag ``few_rows``).
    Differs      from the paper: of the centred rows.

    Parameters
    ----------
    source : {"moments", "sample"}, default="moments"
        Covariance of all rows, or the Gram matrix of the hash sample (for very wide sites).

    Examples
    --------
    >>> round(stable_rank([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).value, 6)
    1.25

    References
    ----------
    rudelson2007sampling, johnstone2001distribution
    """

    paper: ClassVar[str] = "rudelson2007sampling"

    def result(self, rows: Rows, independent_spectrum: float | None = None) -> RankResult:
        """Divide the sum of the eigenvalues by the largest."""
        return rank_result(
            rows,
            lambda values: values.sum() / values[0],
            white_stable_rank,
            {},
            independent=independent_spectrum,
        )


@functools.lru_cache(maxsize=256)
def white_stable_rank(dim: int, n: int) -> float:
    """Return the mean stable rank of ``n`` white rows, simulated for few directions."""
    few, many = min(dim, n), max(dim, n)
    if few == 1:
        return 1.0
    if few > DRAWN:
        return dim / white_largest(dim, n)
    random, total = torch.Generator().manual_seed(0), 0.0
    for _ in range(DRAWS):
        values = torch.linalg.eigvalsh(wishart(many, few, random))
        total += float(values.sum() / values[-1]) / DRAWS
    return total


stable_rank = as_function(StableRank)
