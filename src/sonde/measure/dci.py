"""Latents used by a linear prediction of known factors, and how mixed they are.

The latents are the first site and the factors the second, one unit for each factor.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._factors import (
    check_factors,
    check_latents,
    factor_flags,
    table_chart,
    unit_correlations,
    unrelated,
)
from sonde.measure._reads import CrossInstrument
from sonde.stats import CrossMomentsState, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class DCIResult(Result):
    """Disentanglement, completeness and informativeness, as means and by latent or factor.

    ``disentanglement`` of each latent: 1 where it serves one factor alone. ``completeness`` of each
    factor: 1 where one latent alone serves it. ``informativeness``: the share of each factor's
    variance that is predicted. ``complete`` is the mean of completeness over factors, weighted by
    their total importance; ``informative`` is the plain mean over factors that vary.
    ``importance`` is the table behind disentanglement and completeness.
    """

    title: ClassVar[str] = "Importance of latents for factors"
    direction: Direction = "higher"
    complete: float
    complete_null: float
    informative: float
    disentanglement: Float[Tensor, "latent"]
    completeness: Float[Tensor, "factor"]
    informativeness: Float[Tensor, "factor"]
    importance: Float[Tensor, "factor latent"]

    def chart(self) -> dict[str, Any]:
        """Return a chart with a heat map of importances."""
        return table_chart(self.title, "importance", self.importance)


@final
@dataclass(frozen=True)
class DCI(CrossInstrument):
    """Disentanglement, completeness and informativeness (DCI) by linear predictions of factors.

    The importance ``R_jf`` of latent ``j`` for factor ``f`` is the absolute coefficient of a ridge
    regression between standardised units. ``D_j = 1 - H(R_j / sum) / ln factors``, averaged over
    latents by their total importance. Completeness is the same along the other axis.

    Range        [0, 1]; higher = better disentangled. Invariant to  permutation, shifts and scales
                 of each unit.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(200 dim^2 dim2) for
                 the null.
    Assumes      factors whose numbers mean something: encode a factor of names as a unit of 0 and 1
                 for each name. More rows than latents (flag ``few_rows``).
                 Where a latent serves a factor by no more than chance the standard error is up to
                 twice too wide (flag ``se_first_order``).
    Differs      from the paper: a ridge in place of a lasso or a forest, so other importances, and
                 informativeness on the fitted rows. The null takes rows as independent.

    Parameters
    ----------
    ridge : float, default=1e-4
        Added to the variance of each standardised latent.

    Examples
    --------
    >>> import torch
    >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    >>> round(dci(factors.flip(1) * 2 + 1, factors).value, 6)
    1.0

    References
    ----------
    eastwood2018framework
    """

    ridge: float = 1e-4
    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "eastwood2018framework"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"ridge": 0.1})

    def __post_init__(self) -> None:
        check_ranges(self, ridge="> 0")

    def result(
        self, cross: CrossMomentsState, each: tuple[MomentsState, MomentsState]
    ) -> DCIResult:
        """Predict the factors and compare the coefficients."""
        x, y = each
        check_latents("DCI", len(x.mean))
        check_factors("DCI", len(y.mean))
        own, to_factors = unit_correlations(x.scatter, x, x), unit_correlations(cross.cross, x, y)
        matrix = own + self.ridge * torch.eye(len(own), dtype=own.dtype, device=own.device)
        weight = torch.linalg.solve(matrix, to_factors)
        # what the ridge leaves of the variance: 1 - w' (2 r - S w), with the weights as they are
        predicted = (weight * (2 * to_factors - own @ weight)).sum(0).detach()
        value, each_latent = concentration(weight.abs())
        complete, each_factor = concentration(weight.detach().abs().T)
        chance = torch.linalg.solve(matrix.detach(), unrelated(x, y)).abs()
        nulls = [concentration(w)[0].nanmean() for w in (chance, chance.mT)]
        live = y.variance.detach() > 0
        some = bool(torch.isfinite(value.detach()))
        # at a coefficient of 0 its size has a kink, and entropy an infinite slope
        near = bool((weight.detach()[:, live].abs() < 2.0 / math.sqrt(cross.n)).any())
        return DCIResult(
            value=value if some else math.nan,
            null=float(nulls[0]),
            n=cross.n,
            range=(0.0, 1.0),
            flags=factor_flags(x, y) + (("se_first_order",) if near else ()),
            conventions={"importance": f"ridge {self.ridge:g}", "null": "200 draws"},
            complete=float(complete),
            complete_null=float(nulls[1]),
            informative=float(predicted[live].mean()) if some else math.nan,
            disentanglement=each_latent.detach(),
            completeness=each_factor,
            informativeness=torch.where(live, predicted, math.nan),
            importance=weight.detach().abs().T,
        )


def concentration(
    importance: Float[Tensor, "*draw row column"],
) -> tuple[Float[Tensor, "*draw"], Float[Tensor, "*draw row"]]:
    """Return how concentrated rows are in one column: the weighted mean, and each row's value.

    NaN for rows of zeros.
    """
    total = importance.sum(-1, keepdim=True)
    alive = total > 0
    share = importance / torch.where(alive, total, 1.0)
    entropy = -torch.xlogy(share, torch.where(share > 0, share, 1.0)).sum(-1)
    score = 1.0 - entropy / math.log(importance.shape[-1])
    weight = total[..., 0]
    mean = (weight * score).sum(-1) / weight.sum(-1)
    return mean, torch.where(alive[..., 0], score, math.nan)


dci = as_function(DCI)
