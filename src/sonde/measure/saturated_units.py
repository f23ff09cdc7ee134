"""Units of a bounded activation whose gradient has vanished.

Only for the output of a tanh or sigmoid; for other activations the figure means nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats import Scalars, ScalarsState

Bounded = Literal["tanh", "sigmoid"]


@final
@dataclass(frozen=True, kw_only=True)
class SaturatedUnitsResult(Result):
    """Fraction of saturated units; ``slope`` is each unit's mean derivative over the maximum."""

    direction: Direction = "higher"
    slope: Float[Tensor, "dim"]
    saturated: Bool[Tensor, "dim"]


@final
@dataclass(frozen=True)
class SaturatedUnits(Instrument):
    """Fraction of units with a mean derivative below ``threshold`` of the largest possible.

    The derivative of tanh is ``1 - y^2`` and that of a sigmoid ``y (1 - y)``, so its mean follows
    exactly from mean ``m`` and variance ``v`` of the output: ``1 - v - m^2``, or
    ``4 (m - v - m^2)`` relative to 1/4.

    Range        [0, 1]; higher = more saturated units.
    Cost         one pass; state 48 dim bytes; result O(dim).
    Assumes      the rows are outputs of that activation; values outside its range give NaN and
                 ``clipped``.
    Differs      from shares of rows near the ends: no cut on single rows.

    Parameters
    ----------
    activation : {"tanh", "sigmoid"}, default="tanh"
        Which function made the rows.
    threshold : float, default=0.05
        Relative mean derivative below which a unit counts.

    Examples
    --------
    >>> saturated_units([[0.99, 0.1], [-0.99, 0.0]]).value
    0.5

    References
    ----------
    glorot2010difficulty
    """

    activation: Bounded = "tanh"
    threshold: float = 0.05
    paper: ClassVar[str] = "glorot2010difficulty"

    def __post_init__(self) -> None:
        check_ranges(self, activation=("tanh", "sigmoid"), threshold="(0, 1)")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each unit's mean and variance."""
        return {"scalars": Scalars()}

    def result(self, scalars: ScalarsState) -> SaturatedUnitsResult:
        """Compute mean derivatives from the two moments."""
        low = -1.0 if self.activation == "tanh" else 0.0
        outside = bool((scalars.low < low - 1e-3).any() or (scalars.high > 1.0 + 1e-3).any())
        square = scalars.mean_square
        slope = 1.0 - square if self.activation == "tanh" else 4.0 * (scalars.mean - square)
        saturated = slope < self.threshold
        return SaturatedUnitsResult(
            value=float("nan") if outside else float(saturated.double().mean()),
            null=0.0,
            n=scalars.n,
            range=(0.0, 1.0),
            flags=("clipped",) if outside else (),
            conventions={"activation": self.activation, "se": "a count of units"},
            slope=slope,
            saturated=saturated,
        )


saturated_units = as_function(SaturatedUnits)
