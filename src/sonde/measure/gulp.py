"""Largest difference between predictions of linear regressions on two sites."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._flags import SMALLEST, moment_flags
from sonde.measure._reads import CrossInstrument
from sonde.stats import CrossMomentsState, MomentsState
from sonde.stats.normal_equations import GRAM_CUT


@final
@dataclass(frozen=True, kw_only=True)
class GULPResult(Result):
    """Squared distance; ``distance`` is its root, a metric."""

    direction: Direction = "lower"
    distance: float


@final
@dataclass(frozen=True)
class GULP(CrossInstrument):
    """Squared distance of two sites by their ridge regressions' predictions.

    Over all targets that the rows could have, the largest mean squared difference between the
    predictions from one site and from the other: 0 where both serve every linear task alike. With
    ``A = S_x (S_x + ridge)^-1`` of the covariances, ``tr A_x^2 + tr A_y^2 - 2 tr(P_x S_xy P_y
    S_yx)``, ``P = (S + ridge)^-1``. At ridge 0 it is ``dim + dim2 - 2 sum rho^2``.

    Range        [0, dim + dim2]; lower = more alike. Invariant to  rotation, shifts; at ridge 0 to
                 any invertible linear map.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3).
    Assumes      more rows than ``dim`` (flag ``few_rows``).
    Differs      from the paper: rows are centred and not scaled; the value is the square.

    Parameters
    ----------
    ridge : float, default=0.0
        Added to the eigenvalues of each covariance, in squared units of the states.

    Examples
    --------
    >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> abs(round(gulp(x, 2 * x.flip(1) + 1).value, 6))
    0.0

    References
    ----------
    boix2022gulp
    """

    ridge: float = 0.0
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "boix2022gulp"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"ridge": 0.1})

    def __post_init__(self) -> None:
        check_ranges(self, ridge=">= 0")

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> GULPResult:
        """Sum the sizes of both smoothers and subtract twice their product."""
        x, y = each
        flags = tuple(dict.fromkeys(moment_flags(x) + moment_flags(y)))
        if "dead" in flags:
            return GULPResult(n=cross.n, range=(0.0, math.inf), flags=flags, distance=math.nan)
        if any(_is_swamped(m, self.ridge) for m in each):
            # one row is so long that its square leaves nothing of the ridge and of other rows
            flags = tuple(dict.fromkeys((*flags, "lost_precision")))
            return GULPResult(n=cross.n, range=(0.0, math.inf), flags=flags, distance=math.nan)
        one, two = _smoother(x, self.ridge), _smoother(y, self.ridge)
        both = (one @ cross.covariance @ two @ cross.covariance.T).diagonal().sum()
        own = [((p @ m.covariance) @ (p @ m.covariance)).diagonal().sum()
               for p, m in ((one, x), (two, y))]  # fmt: skip
        # unrelated rows: E tr(P_x S_xy P_y S_yx) = tr(P_x S_x) tr(P_y S_y) / (n - 1)
        sizes = [
            float((p @ m.covariance).diagonal().sum().detach()) for p, m in ((one, x), (two, y))
        ]
        value = own[0] + own[1] - 2 * both
        number = float(value.detach())
        n_null = max((independent or cross.n) - 1, 1)
        return GULPResult(
            value=value,
            null=float((own[0] + own[1]).detach()) - 2 * sizes[0] * sizes[1] / n_null,
            n=cross.n,
            range=(0.0, float(len(x.mean) + len(y.mean))),
            flags=flags,
            conventions={"centered": True, "ridge": self.ridge},
            distance=math.sqrt(number) if number >= 0 else math.nan,
        )


def _is_swamped(moments: MomentsState, ridge: float) -> bool:
    """Return whether the ridge is lost in the rounding, or the variance is too small to invert."""
    variance = moments.variance.detach()
    if float(variance.sum()) < SMALLEST:
        return True
    if ridge == 0:
        return False
    return ridge < torch.finfo(torch.float64).eps * float(variance.max())


def _smoother(moments: MomentsState, ridge: float) -> Float[Tensor, "dim dim"]:
    """Return the inverse of covariance plus ridge, on the directions that vary."""
    covariance = moments.covariance
    scale = torch.where(covariance.diagonal() > 0, covariance.diagonal(), 1.0).detach().rsqrt()
    even = covariance * scale[:, None] * scale + ridge * torch.diag(scale.square())
    if ridge > 0:
        return torch.linalg.inv(even) * scale[:, None] * scale
    return torch.linalg.pinv(even, rtol=GRAM_CUT, hermitian=True) * scale[:, None] * scale


gulp = as_function(GULP)
