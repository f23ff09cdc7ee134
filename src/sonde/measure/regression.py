"""Fraction of one site that a linear map of another explains, with the map."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._flags import moment_flags
from sonde.measure._reads import CrossInstrument
from sonde.stats import CrossMomentsState, MomentsState, solve_normal_equations


@final
@dataclass(frozen=True, kw_only=True)
class RegressionResult(Result):
    """Explained fraction of the second site's variance; ``x @ weight + bias`` predicts it."""

    direction: Direction = "higher"
    weight: Float[Tensor, "dim dim2"]
    bias: Float[Tensor, "dim2"]
    adjusted: float


@final
@dataclass(frozen=True)
class Regression(CrossInstrument):
    """Fraction of the second site's variance that a linear map of the first site explains.

    Ordinary least squares from sums alone: ``tr(C^T S_x^-1 C) / tr S_y`` with the cross scatter
    ``C``. Unrelated rows give ``dim / (n - 1)`` (the null); ``adjusted`` takes that away.

    Range        [0, 1]; higher = more is explained. Not symmetric.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3).
    Assumes      more rows than ``dim`` (flag ``few_rows``).
    Differs      from textbooks: a ridge of ``ridge`` on the correlations of the units of ``x``.

    Parameters
    ----------
    ridge : float, default=1e-8
        Added to the variance of each standardised unit.

    Examples
    --------
    >>> x = [[0.0], [1.0], [2.0], [3.0]]
    >>> round(regression(x, [[1.0], [3.0], [5.0], [7.0]]).value, 6)
    1.0

    References
    ----------
    hoerl1970ridge
    """

    ridge: float = 1e-8
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "hoerl1970ridge"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"ridge": 0.01})

    def __post_init__(self) -> None:
        check_ranges(self, ridge=">= 0")

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> RegressionResult:
        """Solve the normal equations."""
        x, y = each
        dim, n = len(x.mean), cross.n
        total = y.variance.sum() * y.n
        flags = tuple(dict.fromkeys(moment_flags(x) + moment_flags(y)))
        if "dead" in flags:
            weight = torch.zeros_like(cross.cross)
            value: Tensor | float = float("nan")
        else:
            weight = _solved(x.scatter, cross.cross, self.ridge)
            value = (weight * cross.cross).sum() / total
        n_null = independent or n
        freedom = n_null - dim - 1
        adjusted = (
            1.0 - (1.0 - float(torch.as_tensor(value).detach())) * (n_null - 1) / freedom
            if freedom > 0
            else float("nan")
        )
        return RegressionResult(
            value=value,
            null=min(dim / max(n_null - 1, 1), 1.0),
            n=n,
            range=(0.0, 1.0),
            flags=flags,
            conventions={"ridge": f"{self.ridge:g}, between standardised units"},
            weight=weight.detach(),
            bias=(cross.mean_y - cross.mean_x @ weight).detach(),
            adjusted=adjusted,
        )


def _solved(
    scatter: Float[Tensor, "dim dim"], cross: Float[Tensor, "dim dim2"], ridge: float
) -> Float[Tensor, "dim dim2"]:
    """Return the weights, solved between standardised units; 0 for constant units."""
    if ridge == 0:
        return solve_normal_equations(scatter, cross)
    square = scatter.diagonal().detach()
    live = square > 0
    scale = torch.where(live, square, 1.0).sqrt()
    matrix = scatter / (scale[:, None] * scale)
    matrix = matrix + torch.diag(torch.where(live, ridge, torch.ones_like(scale)))
    return torch.linalg.solve(matrix, cross / scale[:, None]) / scale[:, None]


regression = as_function(Regression)
