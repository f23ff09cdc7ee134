"""Test whether one latent predicts each known factor much better than the others.

The latents are the first site and the factors the second, one unit for each factor.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.result import Direction, Result
from sonde.measure._factors import (
    check_latents,
    factor_flags,
    largest_gap,
    table_chart,
    unit_correlations,
    unrelated,
)
from sonde.measure._reads import CrossInstrument
from sonde.stats import CrossMomentsState, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class SAPResult(Result):
    """Mean gap; ``lead`` holds each factor's gap, ``scores`` the squared correlations."""

    title: ClassVar[str] = "Accuracy with which each latent predicts each factor"
    direction: Direction = "higher"
    lead: Float[Tensor, "factor"]
    scores: Float[Tensor, "factor latent"]

    def chart(self) -> dict[str, Any]:
        """Return a chart with a heat map of the scores."""
        return table_chart(self.title, "score", self.scores)


@final
@dataclass(frozen=True)
class SAP(CrossInstrument):
    """Mean gap over factors between the two best predicting latents (SAP).

    The score of a latent for a factor is the share of the factor's variance that a line through
    this latent explains: their squared correlation.

    Range        [0, 1]; higher = better disentangled. Invariant to  permutation, shifts and scales
                 of each unit.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(latents^3) for the
                 null.
    Assumes      factors whose numbers mean something: encode a factor of names as a unit of 0 and 1
                 for each name. Constant factors are left out of the mean (flag ``dead``).
    Differs      from the paper: squared correlations for factors of few values too, for which the
                 paper takes the accuracy of a threshold.

    Examples
    --------
    >>> import torch
    >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    >>> round(sap(factors.flip(1) * 2 + 1, factors).value, 6)
    1.0

    References
    ----------
    kumar2018variational
    """

    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "kumar2018variational"

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> SAPResult:
        """Compare each factor's two best latents."""
        x, y = each
        check_latents("SAP", len(x.mean))
        scores = unit_correlations(cross.cross, x, y).square().T
        lead = largest_gap(scores)
        live = y.variance.detach() > 0
        some = bool(live.any()) and bool((x.variance.detach() > 0).any())
        chance = unrelated(x, y).square().mT[:, live]
        null = largest_gap(chance.flatten(0, 1)).mean() / max((independent or cross.n) - 1, 1)
        return SAPResult(
            value=lead[live].mean() if some else math.nan,
            null=float(null) if some else math.nan,
            n=cross.n,
            range=(0.0, 1.0),
            flags=factor_flags(x, y),
            conventions={"score": "squared correlation", "null": "200 draws"},
            lead=torch.where(live, lead.detach(), math.nan),
            scores=scores.detach(),
        )


sap = as_function(SAP)
