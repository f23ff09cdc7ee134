"""Units or single values that dwarf all others: massive activations and outlier dimensions."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument, Read, WithSinks
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.site import POSITIONS
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats import Scalars, ScalarsState

MEAN_RANK = 0.5264  # Chen and Tyler: the mean of the largest lies at this power of its rank


@final
@dataclass(frozen=True, kw_only=True)
class MassiveActivationsResult(Result):
    """Largest ratio, each unit's ratio, and the energy fraction of a few units.

    ``position`` says where in its text or image each unit's largest value stood. ``massive`` marks
    units at or above the threshold, ``constant`` those of them that vary by less
    than a tenth of their mean and so act as a bias. ``share`` is the part of the mean square that
    the largest 1 % of the units (at least one) hold, ``fair`` what they would hold if all were
    equal.
    """

    direction: Direction = "higher"
    ratio: Float[Tensor, "dim"]
    position: Int[Tensor, "dim"]
    massive: Bool[Tensor, "dim"]
    constant: Bool[Tensor, "dim"]
    share: float
    fair: float

    @property
    def outlier_units(self) -> bool:
        """True if a few units hold half of the energy, and 20 times an equal share."""
        return self.share >= 0.5 and self.share >= 20.0 * self.fair

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return ratio, null, unit and position of massive units, or of the largest unit."""
        order = self.ratio.argsort(descending=True, stable=True)
        units = order[: max(1, int(self.massive.sum()))]
        columns = {
            "value": self.ratio[units].double().tolist(),  # pyright: ignore[reportUnknownMemberType]
            "null": [self.null] * len(units),
            "unit": units.tolist(),  # pyright: ignore[reportUnknownMemberType]
            "position": self.position[units].tolist(),  # pyright: ignore[reportUnknownMemberType]
        }
        return pa.table(columns)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True)
class PeaksState(State):
    """The largest magnitude of each unit, and its row's position."""

    value: Float[Tensor, "dim"]
    position: Int[Tensor, "dim"]


@final
@dataclass(frozen=True)
class Peaks(Statistic[PeaksState]):
    """Position of each unit's maximum, the first of equal ones, however rows are divided."""

    def observe(self, x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]) -> PeaksState:
        """Return the peaks of a batch."""
        order = position.argsort(stable=True)
        size = x.detach()[order.to(x.device)].abs_()
        row = size.argmax(0)
        value = size.gather(0, row[None])[0].double()
        return PeaksState(value, position[order].to(x.device)[row])

    def merge(self, a: PeaksState, b: PeaksState) -> PeaksState:
        """Return the larger peak of each unit."""
        equal = b.value == a.value
        second = (b.value > a.value) | (equal & (b.position < a.position))
        return PeaksState(
            torch.maximum(a.value, b.value), torch.where(second, b.position, a.position)
        )

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of a number and a position for each unit."""
        return 16 * dims[0]


@final
@dataclass(frozen=True)
class MassiveActivations(Instrument):
    """Largest absolute value over the root mean square of the median live unit.

    Trained language models keep a few values a thousand times larger than all others, often in one
    unit and at the first position. ``max |x| / median_u rms_u``; the median unit is blind to the
    large ones, and the root mean square, unlike the median value, is not 0 after a ReLU. The null
    is the expected largest of as many normal values: the quantile ``0.526^(1 / (n dim))`` of
    ``|x|``.

    Range        [1, inf); higher = more massive.
    Cost         one pass; state 64 dim bytes; result O(dim log dim).
    Assumes      rows of single tokens or patches where there are any (``positions``); units that
                 are always zero are left out of the median.
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
        check_ranges(self, threshold="> 0")

    def reading(self) -> dict[str, Any]:
        """Return the reading of a row per token or patch, since means hide large values."""
        return {"reducer": POSITIONS}

    def reads(self) -> dict[str, Read]:
        """Return the requests for each unit's range, mean square and maximum's position."""
        every = WithSinks()
        return {"scalars": Read(Scalars(), every), "peaks": Read(Peaks(), every)}

    def result(self, scalars: ScalarsState, peaks: PeaksState) -> MassiveActivationsResult:
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
            null=_largest_normal(scalars.n * len(square)),
            n=scalars.n,
            range=(1.0, math.inf),
            flags=() if len(living) else ("dead",),
            conventions={
                "se": "a maximum has no standard error",
                "median": "over units that are not always zero",
            },
            ratio=ratio,
            position=peaks.position,
            massive=massive,
            constant=massive & steady,
            share=float(top / square.sum()) if len(living) else math.nan,
            fair=few / len(square),
        )


def _largest_normal(count: int) -> float:
    """Return the expected largest absolute value of ``count`` standard normal values."""
    beyond = -math.expm1(math.log(MEAN_RANK) / max(count, 1))
    return -float(torch.special.ndtri(torch.tensor(beyond / 2, dtype=torch.float64)))


massive_activations = as_function(MassiveActivations)
