"""An affine map from an earlier site to a later one, fitted from moments."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import AffineMap
from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Span, Statistic
from sonde.stats import (
    CrossMoments,
    CrossMomentsState,
    Moments,
    MomentsState,
    solve_normal_equations,
)


@final
@dataclass(frozen=True, kw_only=True)
class AffineLensResult(Result):
    """``value`` is the fraction of the second site's variance that the first explains linearly."""

    weight: Float[Tensor, "dim2 dim"]
    bias: Float[Tensor, "dim2"]

    @property
    def map(self) -> AffineMap:
        """The map in the form that ``LogitLens`` accepts.

        Raises
        ------
        InputError
            If the sites differ in width.
        """
        if self.weight.shape[0] != self.weight.shape[1]:
            raise InputError(
                "AffineLensResult.map: expected two sites of the same width, got widths "
                f"{self.weight.shape[1]} and {self.weight.shape[0]}."
            )
        return AffineMap(
            left=self.weight,
            right=torch.eye(len(self.weight), dtype=self.weight.dtype),
            shift=self.bias,
            scale=0.0,
        )


@final
@dataclass(frozen=True)
class AffineLens(Instrument):
    """The affine map from the states of a site to the states of a later site, by least squares.

    ``y = mean_y + W (x - mean_x)`` with ``W = C_yx (C_xx + ridge tr(C_xx) / dim I)^-1``.

    Range        [0, 1], share of variance explained on the fitted rows; 1 = all, 0 = no more than
                 the mean explains.
    Cost         one pass; state ``8 (2 dim^2 + dim dim2)`` bytes; result O(dim^3).
    Assumes      more rows than ``dim``, or a ridge.

    Parameters
    ----------
    ridge : float, default=1e-3
        Relative to the mean variance of a unit.

    Examples
    --------
    >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> found = AffineLens(ridge=1e-9).fit(x, y=2 * x + 1)
    >>> round(found.value, 6), found.bias.round(decimals=4).tolist()
    (1.0, [1.0, 1.0, 1.0])

    References
    ----------
    belrose2023tuned
    """

    ridge: float = 1e-3
    span: ClassVar[Span] = "pair"
    estimates: ClassVar[bool] = False
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "belrose2023tuned"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"ridge": 0.1})

    def __post_init__(self) -> None:
        check_ranges(self, ridge=">= 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the moments of each site, and the cross moments of the pair."""
        return {"moments": Moments(), "cross": CrossMoments()}

    def result(
        self, moments: tuple[MomentsState, MomentsState], cross: CrossMomentsState
    ) -> AffineLensResult:
        """Return the fitted map."""
        first, second = moments
        covariance = first.covariance
        dim = len(covariance)
        size = covariance.diagonal().mean()
        ridged = covariance + (self.ridge * size).clamp(min=1e-300) * torch.eye(dim).to(covariance)
        weight = solve_normal_equations(ridged, cross.covariance).T
        explained = 2 * (weight * cross.covariance.T).sum() - ((weight @ covariance) * weight).sum()
        total = second.covariance.diagonal().sum()
        is_dead = not float(total) > 0
        return AffineLensResult(
            value=float("nan") if is_dead else float(explained / total),
            n=cross.n,
            range=(0.0, 1.0),
            direction="higher",
            flags=("dead",) if is_dead else ("few_rows",) if cross.n <= dim else (),
            conventions={"ridge": f"{self.ridge:g} of the mean variance", "se": "none"},
            weight=weight,
            bias=cross.mean_y - weight @ cross.mean_x,
        )
