"""Similarity of two sites, with directions weighted by their part of the first site."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from sonde.core.function import as_function
from sonde.measure._reads import CrossInstrument
from sonde.measure.cca import CCAResult, canonical_or_none, result_of
from sonde.stats import CrossMomentsState, MomentsState


@final
@dataclass(frozen=True)
class PWCCA(CrossInstrument):
    """Canonical correlations of two sites, weighted by projection onto the first.

    ``sum_a w_a rho_a / sum_a w_a`` with ``w_a = sum_j |<h_a, x_j>|`` over the units ``x_j`` of the
    first site: directions that its units hardly use count little. It is not symmetric: compute it
    both ways.

    Range        [0, 1]; higher = more alike. Invariant to  isotropic scale and shifts of the first
                 site, any invertible linear map of the second.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3).
    Assumes      many more rows than ``dim`` (flag ``few_rows``); the null is that of equal weights.
    Differs      from the paper: the standard error takes the weights as given.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> round(pwcca(x, 3 * x.flip(1) + 1).value, 6)
    1.0

    References
    ----------
    morcos2018pwcca
    """

    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "morcos2018pwcca"

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> CCAResult:
        """Weight the canonical correlations."""
        canonical = canonical_or_none(cross, each)
        conventions = {"weights": "units of the first site"}
        plain = result_of(canonical, cross.n, each, conventions, independent)
        if canonical is None:
            return plain
        on_units = canonical.main.T @ each[0].scatter
        weight = on_units.abs().sum(1)
        return replace(plain, value=(weight * canonical.rho).sum() / weight.sum())


pwcca = as_function(PWCCA)
