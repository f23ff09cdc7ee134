"""Mean cosine between two rows, from moments alone: high if rows share a direction."""

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
from sonde.stats import Moments, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class AnisotropyResult(Result):
    """Mean cosine, with and without the units that dominate the mean row.

    ``spread`` is ``sqrt(total variance) / |mean|``: the cosine is ``1 / (1 + spread^2)``.
    """

    direction: Direction = "higher"
    units: Int[Tensor, "unit"]
    trimmed: float
    spread: float
    spread_trimmed: float


@final
@dataclass(frozen=True)
class Anisotropy(Instrument):
    """Mean cosine between two rows, estimated from the mean and the total variance.

    Two rows have the mean inner product ``|m|^2`` and the mean square ``|m|^2 + tr S``; their ratio
    is the mean cosine where row lengths vary little. One or a few units with a huge mean make all
    rows look alike, so ``trimmed`` leaves out the ``units`` of largest mean square. The null,
    ``1 / n``, is that of rows about zero.

    Range        [0, 1]; higher = more alike.
    Cost         one pass; state 16 dim bytes; result O(dim).
    Assumes      rows of similar length; otherwise long rows count more.
    Differs      from the paper: a ratio of means, not a mean over sampled pairs.

    Parameters
    ----------
    scatter : {"diag", "full"}, default="diag"
        Which moments to read; the value is the same. ``full`` shares the state of the ranks.

    Examples
    --------
    >>> anisotropy([[1.0, 1.0], [1.0, -1.0]]).value
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
        """Return the request for moments."""
        return {"moments": Moments(self.scatter)}

    def result(
        self, moments: MomentsState, independent_mean: float | None = None
    ) -> AnisotropyResult:
        """Compare the mean row with the rows' mean square, with and without dominating units."""
        square, variance = moments.mean.square(), moments.variance
        units = dominating(square.detach())
        keep = torch.ones_like(square, dtype=torch.bool)
        keep[units] = False
        value = square.sum() / (square.sum() + variance.sum())
        if not bool((square + variance).detach().sum() > 0):
            value = math.nan
        return AnisotropyResult(
            value=value,
            null=1.0 / (independent_mean or moments.n),
            n=moments.n,
            range=(0.0, 1.0),
            flags=tuple(f for f in moment_flags(moments) if f != "few_rows"),
            conventions={"estimator": "ratio of means", "precision": "rows taken as float32"},
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
