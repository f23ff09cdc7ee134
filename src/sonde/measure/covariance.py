"""Mean, covariance and total variance of the rows of one site.

Not for ranks or shape: see ``spectrum`` and the ranks, which read the same state.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final, get_args

from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._flags import moment_flags
from sonde.stats import Moments, MomentsState
from sonde.stats.scatter import AnyScatter, is_frugal


@final
@dataclass(frozen=True, kw_only=True)
class CovarianceResult(Result):
    """Total variance, with the mean and the covariance."""

    title: ClassVar[str] = "Total variance"
    direction: Direction = "higher"
    mean: Float[Tensor, "dim"]
    covariance: Float[Tensor, "dim dim"] | Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class Covariance(Instrument):
    """Total variance of the rows, with their mean and covariance.

    The trace of the covariance: the mean squared distance of a row from the mean row. Formula:
    ``(1 / n) sum_i |x_i - m|^2``.

    Range        [0, inf), in squared units of the rows; higher = more spread.
    Cost         one pass; state 8 (dim^2 + dim) bytes; result O(dim).
    Assumes      nothing; a value of 0 carries the flag ``dead``.
    Differs      from ``numpy.cov``: divisor ``n``, not ``n - 1``.

    Parameters
    ----------
    scatter : {"auto", "full", "diag"}, default="auto"
        The whole covariance, or the variances alone. "auto": the whole up to 2,048 dimensions,
        above that the variances; the value is the same.

    Examples
    --------
    >>> covariance([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]]).value
    2.0

    References
    ----------
    chan1983variance
    """

    scatter: AnyScatter = "auto"
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "chan1983variance"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"scatter": "diag"})

    def __post_init__(self) -> None:
        check_ranges(self, scatter=get_args(AnyScatter))

    def at_width(self, dim: int) -> "Covariance":
        """Return this instrument, with variances alone if rows are too wide for a covariance."""
        return replace(self, scatter="diag") if is_frugal(self.scatter, dim) else self

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for moments."""
        return {"moments": Moments("diag" if self.scatter == "diag" else "full")}

    def result(self, moments: MomentsState) -> CovarianceResult:
        """Compute the sum of variances."""
        return CovarianceResult(
            value=moments.variance.sum(),
            n=moments.n,
            null=0.0,
            unit="squared units of the rows",
            range=(0.0, float("inf")),
            flags=moment_flags(moments),
            conventions={"divisor": "n", "precision": "rows taken as float32"},
            mean=moments.mean,
            covariance=moments.covariance,
        )


covariance = as_function(Covariance)
