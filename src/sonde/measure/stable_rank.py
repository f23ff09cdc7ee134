"""Total variance in units of the largest direction's variance.

Says how far the first direction stands out, nothing about the rest of the spectrum.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.core.function import as_function
from sonde.measure._spectra import RankResult, Rows, SpectrumInstrument, rank_result


@final
@dataclass(frozen=True)
class StableRank(SpectrumInstrument):
    """Total variance over the variance of the widest direction.

    ``sum l / max l`` over the eigenvalues ``l`` of the covariance: never above the rank, and moved
    little by directions of little variance. White rows give about
    ``dim / (1 + sqrt(dim / n))^2``, which is the null.

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
    rudelson2007sampling
    """

    paper: ClassVar[str] = "rudelson2007sampling"

    def result(self, rows: Rows, independent: float | None = None) -> RankResult:
        """Compare the sum of the eigenvalues with the largest."""
        return rank_result(
            rows,
            lambda values: values.sum() / values[0],
            lambda dim, n: dim / (1.0 + math.sqrt(dim / n)) ** 2,
            {},
            independent=independent,
        )


stable_rank = as_function(StableRank)
