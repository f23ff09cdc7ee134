"""Units with one constant value, zero or not, on every row."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Bool
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats import Scalars, ScalarsState


@final
@dataclass(frozen=True, kw_only=True)
class DeadUnitsResult(Result):
    """Fraction of dead units; ``zero`` and ``constant`` mark them."""

    direction: Direction = "higher"
    zero: Bool[Tensor, "dim"]
    constant: Bool[Tensor, "dim"]
    rate_bound: float


@final
@dataclass(frozen=True)
class DeadUnits(Instrument):
    """Fraction of units with one value on all rows.

    Exact: a unit counts only if its smallest and largest value are equal. A unit that is active on
    at least a share ``rate_bound`` of independent rows would have been seen alive. This holds for
    all units at once with probability 0.99: ``1 - (0.01 / dim)^(1 / n)``.

    Range        [0, 1]; higher = more dead units.
    Cost         one pass; state 48 dim bytes; result O(dim).
    Assumes      enough rows for ``rate_bound`` to be small.
    Differs      from counts of rarely active units: no threshold.

    Examples
    --------
    >>> dead_units([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0]]).value
    0.6666666666666666

    References
    ----------
    lu2020dying
    """

    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "lu2020dying"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each unit's range and number of zeros."""
        return {"scalars": Scalars()}

    def result(self, scalars: ScalarsState) -> DeadUnitsResult:
        """Compare each unit's smallest and largest value."""
        constant = scalars.low == scalars.high
        dim = len(constant)
        return DeadUnitsResult(
            value=float(constant.double().mean()),
            null=0.0,
            n=scalars.n,
            range=(0.0, 1.0),
            flags=("dead",) if bool(constant.all()) else (),
            conventions={"se": "an exact count of events: see rate_bound"},
            zero=scalars.zeros == scalars.n,
            constant=constant,
            rate_bound=1.0 - (0.01 / dim) ** (1.0 / scalars.n),
        )


dead_units = as_function(DeadUnits)
