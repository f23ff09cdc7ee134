"""Number of directions that hold the variance, by the squared eigenvalues.

Dominated by the largest eigenvalues: one direction of huge variance brings it near 1 on a healthy
network. ``entropy_rank`` weighs small eigenvalues more.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.measure._spectra import RankResult, Rows, SpectrumInstrument, rank_result


@final
@dataclass(frozen=True)
class ParticipationRatio(SpectrumInstrument):
    """Number of directions that hold the variance: squared sum over sum of squares.

    ``(sum l)^2 / sum l^2`` over the eigenvalues ``l`` of the covariance: ``d`` equal directions
    give ``d``. The null, that of white rows with ``m = n - 1`` degrees of freedom,
    is ``(dim m + 2) / (dim + m + 1)``.

    Range        [1, dim]; higher = more directions.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3).
    Assumes      more rows than ``dim``; the value falls with too few (flag ``few_rows``).
    Differs      nothing.

    Parameters
    ----------
    source : {"moments", "sample"}, default="moments"
        Covariance of all rows, or the Gram matrix of the hash sample (for very wide sites).

    Examples
    --------
    >>> round(participation_ratio([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).value, 6)
    2.0

    References
    ----------
    gao2017dimensionality
    """

    paper: ClassVar[str] = "gao2017dimensionality"

    def result(self, rows: Rows, independent_spectrum: float | None = None) -> RankResult:
        """Compare the eigenvalues' sum with their sum of squares."""
        return rank_result(
            rows,
            _spread_of,
            lambda dim, n: (dim * n + 2.0) / (dim + n + 1.0),
            {},
            independent=independent_spectrum,
        )


def _spread_of(values: Float[Tensor, "rank"]) -> Float[Tensor, ""]:
    """Return the squared sum over the sum of squares; no square under- or overflows."""
    shares = values / values.detach().max()
    return shares.sum().square() / shares.square().sum()


participation_ratio = as_function(ParticipationRatio)
