"""Units or single values that dwarf all others: massive activations and outlier dimensions."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats import Scalars, ScalarsState


@final
@dataclass(frozen=True, kw_only=True)
class MassiveActivationsResult(Result):
    """Largest ratio, that of every unit, and how much of the energy a few units hold.

    ``massive`` marks units at or above the threshold, ``constant`` those of them that vary by less
    than a tenth of their mean and so act as a bias. ``share`` is the part of the mean square that
    the largest 1 % of the units (at least one) hold, ``fair`` what they would hold if all were
    equal.
    """

    direction: Direction = "higher"
    ratio: Float[Tensor, "dim"]
    massive: Bool[Tensor, "dim"]
    constant: Bool[Tensor, "dim"]
    share: float
    fair: float

    @property
    def outlier_units(self) -> bool:
        """Whether a few units hold half of the energy, and twenty times their fair share."""
        return self.share >= 0.5 and self.share >= 20.0 * self.fair


@final
@dataclass(frozen=True)
class MassiveActivations(Instrument):
    """Largest absolute value over the root mean square of the median living unit.

    Trained language models keep a few values a thousand times larger than all others, often in one
    unit and at the first position. ``max |x| / median_u rms_u``; the median unit is blind to the
    large ones, and the root mean square, unlike the median value, is not 0 after a ReLU. The null
    is the expected largest of as many normal values, about ``sqrt(2 ln(n dim))``.

    Range        [1, inf); higher = more massive.
    Cost         one pass; state 48 dim bytes; result O(dim log dim).
    Assumes      nothing; units that are always zero are left out of the median.
    Differs      from the paper: median over units of the rms, not median of absolute values.

    Parameters
    ----------
    threshold : float, default=1000.0
        Ratio from which a unit counts as massive.

    Examples
    --------
    >>> massive_activations([[1.0, 1.0, 5000.0], [-1.0, 1.0, 1.0]]).value
    5000.0

    References
    ----------
    sun2024massive
    """

    threshold: float = 1000.0
    paper: ClassVar[str] = "sun2024massive"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"threshold": 100.0})

    def __post_init__(self) -> None:
        if not self.threshold > 0.0:
            raise InputError(
                f"MassiveActivations: expected a positive threshold, got {self.threshold}."
            )

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read range and mean square of each unit."""
        return {"scalars": Scalars()}

    def result(self, scalars: ScalarsState) -> MassiveActivationsResult:
        """Compare each unit's largest value with the median unit."""
        square = scalars.mean_square.detach()
        living = square[square > 0]
        largest = torch.maximum(scalars.high.abs(), scalars.low.abs()).detach()
        typical = living.median().sqrt() if len(living) else square.new_tensor(math.nan)
        ratio = largest / typical
        massive = ratio >= self.threshold
        steady = scalars.variance.detach().sqrt() < 0.1 * scalars.mean.detach().abs()
        few = max(1, len(square) // 100)
        top = square.topk(few).values.sum()
        return MassiveActivationsResult(
            value=float(ratio.max()),
            null=math.sqrt(2.0 * math.log(max(scalars.n * len(square), 2))),
            n=scalars.n,
            range=(1.0, math.inf),
            flags=() if len(living) else ("dead",),
            conventions={
                "se": "a maximum has no standard error",
                "median": "over units that are not always zero",
            },
            ratio=ratio,
            massive=massive,
            constant=massive & steady,
            share=float(top / square.sum()) if len(living) else math.nan,
            fair=few / len(square),
        )


def massive_activations(
    x: Any, *, group: Any = None, threshold: float = 1000.0
) -> MassiveActivationsResult:
    """Return how far the largest activation of an array stands out; see ``MassiveActivations``."""
    return MassiveActivations(threshold).fit(x, group=group)
