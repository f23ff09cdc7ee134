"""Mean cosine between two rows, in one pass: high if rows share a direction."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._flags import moment_flags
from sonde.stats import DirectionMoments, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class AnisotropyResult(Result):
    """Mean cosine, with and without the units that dominate the mean row.

    ``spread`` is ``sqrt(total variance) / |mean|`` of the directions: the cosine is
    ``1 / (1 + spread^2)``.
    """

    direction: Direction = "higher"
    units: Int[Tensor, "unit"]
    trimmed: float
    spread: float
    spread_trimmed: float


@final
@dataclass(frozen=True)
class Anisotropy(Instrument):
    """Mean cosine between two rows: the squared length of the mean direction.

    ``|mean_i u_i|^2 = mean_ij cos(x_i, x_j)`` with ``u_i = x_i / |x_i|``, over all pairs, each row
    with itself too: long rows count no more than short ones. One or a few units with a huge mean
    make all rows look alike, so ``trimmed`` leaves out the ``units`` of the largest mean in the
    directions. The null, ``1 / n``, is that of rows about zero.

    Range        [0, 1]; higher = more alike.
    Cost         one pass; state 16 dim bytes; result O(dim).
    Assumes      rows of zeros have no direction: they make no pair (flag ``dead`` if all are zero).
    Differs      from the paper: all pairs, not a sample. ``trimmed`` is a ratio of means, for rows
                 with about equal shares outside ``units``.

    Parameters
    ----------
    scatter : {"diag", "full"}, default="diag"
        Which moments of the directions to read; the value is the same. ``full`` shares the state
        of ``coding_rate``.

    Examples
    --------
    >>> round(anisotropy([[1.0, 1.0], [10.0, -10.0]]).value, 6)
    0.5

    References
    ----------
    ethayarajh2019
    """

    scatter: Literal["full", "diag"] = "diag"
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "ethayarajh2019"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"scatter": "full"})

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for moments of the rows' directions."""
        return {"directions": DirectionMoments(self.scatter)}

    def result(
        self, directions: MomentsState, independent_mean: float | None = None
    ) -> AnisotropyResult:
        """Square the mean direction, with and without dominating units."""
        square, variance = directions.mean.square(), directions.variance
        units = dominating(square.detach())
        keep = torch.ones_like(square, dtype=torch.bool)
        keep[units] = False
        alive = square.sum() + variance.sum()  # the fraction of rows with a direction
        is_alive = bool(alive.detach() > 0)
        value = square.sum() / alive.square() if is_alive else math.nan
        flags = moment_flags(directions)
        return AnisotropyResult(
            value=value,
            null=1.0 / (independent_mean or directions.n),
            n=directions.n,
            range=(0.0, 1.0),
            flags=tuple(f for f in flags if f != "few_rows"),
            conventions={
                "estimator": "all pairs, each row with itself",
                "precision": "rows taken as float32",
            },
            units=units,
            trimmed=_ratio(square[keep], variance[keep]),
            spread=_spread(square, variance),
            spread_trimmed=_spread(square[keep], variance[keep]),
        )


def dominating(square: Float[Tensor, "dim"]) -> Int[Tensor, "unit"]:
    """Return the units of largest value: 3 or 1 %, whichever is more, at most half."""
    dim = len(square)
    count = min(max(3, math.ceil(dim / 100)), dim // 2)
    return torch.argsort(square, descending=True, stable=True)[:count]


def _ratio(square: Float[Tensor, "kept"], variance: Float[Tensor, "kept"]) -> float:
    total = float((square + variance).detach().sum())
    return float(square.detach().sum()) / total if total > 0 else math.nan


def _spread(square: Float[Tensor, "kept"], variance: Float[Tensor, "kept"]) -> float:
    length = float(square.detach().sum())
    return math.sqrt(float(variance.detach().sum()) / length) if length > 0 else math.inf


anisotropy = as_function(Anisotropy)
