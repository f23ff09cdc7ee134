"""Coding rate of directions: nats to code a row up to a given error.

For the part of the rate that classes explain, see ``rate_reduction``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._coding import expected_rate
from sonde.stats import DirectionMoments, MomentsState, gaussian_rate


@final
@dataclass(frozen=True, kw_only=True)
class CodingRateResult(Result):
    """Nats per row; ``n_zero`` rows had no direction and cost nothing."""

    direction: Direction = "higher"
    unit: str = "nats"
    n_zero: int


@final
@dataclass(frozen=True)
class CodingRate(Instrument):
    """Nats to code a unit-length row up to a given squared error.

    ``ln det(1 + dim / eps2 M) / 2`` with the second moment ``M`` of the unit rows, not centred. It
    grows with the number of directions in use, and is largest if all directions are used alike. The
    null is the rate of as many rows of random directions.

    Range        [0, dim / 2 ln(1 + 1 / eps2)] nats; higher = more directions.
                 Invariant to  rotation, isotropic scale.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3).
    Assumes      that lengths say nothing; rows of zeros have no direction (flag ``dead``).
    Differs      from the paper: for one row, not summed over the rows and their mean.

    Parameters
    ----------
    eps2 : float, default=0.5
        Tolerated squared error of a row. Compare values only at equal ``eps2``.

    Examples
    --------
    >>> round(coding_rate([[1.0, 0.0], [0.0, 3.0]], eps2=1.0).value, 6)  # ln 2
    0.693147

    References
    ----------
    yu2020mcr2
    """

    eps2: float = 0.5
    least_rows: ClassVar[int] = 1
    paper: ClassVar[str] = "yu2020mcr2"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"eps2": 0.01})

    def __post_init__(self) -> None:
        check_ranges(self, eps2="> 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for moments of unit-length rows."""
        return {"directions": DirectionMoments()}

    def result(
        self, directions: MomentsState, independent: float | None = None
    ) -> CodingRateResult:
        """Compute the log volume of the second moment."""
        n, dim = directions.n, len(directions.mean)
        second = directions.covariance + torch.outer(directions.mean, directions.mean)
        n_zero = round(n * (1.0 - float(second.detach().diagonal().sum())))
        flags = (["dead"] if n_zero else []) + (["few_rows"] if n <= dim else [])
        scale = dim / self.eps2
        return CodingRateResult(
            value=math.nan if n_zero == n else gaussian_rate(second, scale),
            null=expected_rate(torch.eye(dim) / dim, torch.zeros(dim), independent or n, scale),
            n=n,
            range=(0.0, dim / 2 * math.log1p(1.0 / self.eps2)),
            flags=tuple(flags),
            conventions={"eps2": self.eps2, "rows": "unit length, not centred"},
            n_zero=n_zero,
        )


coding_rate = as_function(CodingRate)
