"""Relative change of the residual stream by a block."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span, Statistic
from sonde.stats import Scalars, ScalarsState
from sonde.stats.moments import MomentsState
from sonde.stats.update_moments import UpdateMoments


@final
@dataclass(frozen=True, kw_only=True)
class UpdateSizeResult(Result):
    """Median relative update; ``ratio`` holds each unit's, NaN for a constant input.

    ``energy`` is the root mean square of the whole update over that of the input.
    """

    direction: Direction = "higher"
    ratio: Float[Tensor, "dim"]
    energy: float


@final
@dataclass(frozen=True)
class UpdateSize(Instrument):
    """Root mean square of a block's update over its input's deviation, for the median unit.

    ``median_u rms(out_u - in_u) / std(in_u)``. Compared unit by unit, because one unit with a huge
    constant value makes any block look idle when whole rows are compared. Below 0.05 the input
    alone explains 99.7 % of the output.

    Range        [0, inf); 0 = the block does nothing.
    Cost         one pass; state 64 dim bytes; result O(dim log dim).
    Assumes      first site the block's input, second its output, equal width.
    Differs      from block influence: no cosine, no sum over units.

    Examples
    --------
    >>> x = [[1.0, 2.0], [-1.0, -2.0]]
    >>> round(update_size(x, [[1.5, 3.0], [-1.5, -3.0]]).value, 6)
    0.5

    References
    ----------
    men2024shortgpt
    """

    span: ClassVar[Span] = "pair"
    equal_widths: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "men2024shortgpt"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the difference's moments, and each site's range and deviation."""
        return {"update": UpdateMoments(), "each": Scalars()}

    def result(
        self, update: MomentsState, each: tuple[ScalarsState, ScalarsState]
    ) -> UpdateSizeResult:
        """Compare each unit's update with its input's standard deviation."""
        before = each[0]
        square = update.mean.square() + update.variance
        alive = (before.high > before.low) & (before.variance.detach() > 0)
        value: float | Tensor = math.nan
        ratio = torch.full_like(square.detach(), math.nan)
        if bool(alive.any()):
            sizes = (square[alive] / before.variance[alive]).clamp(min=1e-300).sqrt()
            value = sizes.median()
            ratio[alive] = sizes.detach()
        total = float(before.mean_square.detach().sum())
        return UpdateSizeResult(
            value=value,
            null=math.sqrt(2.0),
            n=update.n,
            range=(0.0, math.inf),
            flags=() if bool(alive.any()) else ("dead",),
            conventions={"null": "an unrelated output of the same standard deviation"},
            ratio=ratio,
            energy=math.sqrt(float(square.detach().sum()) / total) if total > 0 else math.nan,
        )


update_size = as_function(UpdateSize)
