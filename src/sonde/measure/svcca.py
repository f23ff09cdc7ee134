"""Similarity of the directions that hold most of two sites' variance."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.function import as_function
from sonde.core.ranges import check_ranges
from sonde.measure._reads import CrossInstrument
from sonde.measure.cca import CCAResult, canonical_or_none, result_of
from sonde.stats import CrossMomentsState, MomentsState


@final
@dataclass(frozen=True)
class SVCCA(CrossInstrument):
    """Mean canonical correlation of two sites' directions of largest variance.

    The principal directions that hold a share ``keep`` of a site's variance are kept. The rest,
    which in wide layers is mostly noise, is left out.

    Range        [0, 1]; higher = more alike. Invariant to  rotation, isotropic scale, shifts.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3).
    Assumes      many more rows than directions that are kept (flag ``few_rows``).
    Differs      from public code: ``keep`` is a share of variance, not of singular values, and rows
                 are centred. The standard error takes the kept directions as given.

    Parameters
    ----------
    keep : float, default=0.99
        Share of each site's variance, in (0, 1].

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> round(svcca(x, 5 * x.flip(1) + 1).value, 6)
    1.0

    References
    ----------
    raghu2017svcca
    """

    keep: float = 0.99
    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "raghu2017svcca"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"keep": 0.8})

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1]")

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> CCAResult:
        """Average the canonical correlations of the kept directions."""
        canonical = canonical_or_none(cross, each, self.keep)
        conventions = {"keep": f"{self.keep:g} of the variance"}
        return result_of(canonical, cross.n, each, conventions, independent)


svcca = as_function(SVCCA)
