"""Similarity of two sites up to any invertible linear map: canonical correlations.

It sees directions, not how much variance they have; for that see ``svcca``, ``cka`` and
``procrustes``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.result import Direction, Result
from sonde.measure._canonical import Canonical, canonical_correlations, null_correlations
from sonde.measure._flags import moment_flags
from sonde.measure._reads import CrossInstrument
from sonde.stats import CrossMomentsState, MomentsState


@final
@dataclass(frozen=True, kw_only=True)
class CCAResult(Result):
    """Mean canonical correlation; ``correlations`` holds all, ``mean_square`` their mean square.

    ``mean_square_null`` is the mean square of unrelated rows, in closed form.
    """

    direction: Direction = "higher"
    correlations: Float[Tensor, "pair"]
    mean_square: float
    mean_square_null: float
    ranks: tuple[int, int]


@final
@dataclass(frozen=True)
class CCA(CrossInstrument):
    """Mean canonical correlation of two sites.

    The value is the mean over the ``min(dim, dim2)`` pairs of directions, one of each site, that
    correlate most. In the metric of each site's own covariance all directions count alike, so noise
    directions weigh as much as directions that carry the variance.

    Range        [0, 1]; higher = more alike. Invariant to  invertible linear maps, shifts.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3).
    Assumes      many more rows than ``dim``: with no more, every value is 1 (flag ``few_rows``).
    Differs      from textbooks: directions without variance are left out (``ranks``).

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> round(cca(x, x @ torch.tensor([[1.0, 2, 0], [0, 1, 5], [1, 0, 3]])).value, 6)
    1.0

    References
    ----------
    hotelling1936relations
    """

    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "hotelling1936relations"

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> CCAResult:
        """Average the canonical correlations."""
        return result_of(canonical_or_none(cross, each), cross.n, each, {}, independent)


def canonical_or_none(
    cross: CrossMomentsState, each: tuple[MomentsState, MomentsState], keep: float | None = None
) -> Canonical | None:
    """Return the canonical correlations, or None if a site is constant."""
    dead = any(not float(m.variance.detach().sum()) > 0 for m in each)
    return None if dead else canonical_correlations(cross, *each, keep)


def result_of(
    found: Canonical | None,
    n: int,
    each: tuple[MomentsState, MomentsState],
    conventions: dict[str, Any],
    independent: float | None = None,
) -> CCAResult:
    """Return the mean canonical correlation, with its null for unrelated rows."""
    n_null = round(independent or n)
    flags = dict.fromkeys(moment_flags(each[0]) + moment_flags(each[1]))
    if found is None:
        none = each[0].mean.detach().new_zeros(0)
        return CCAResult(
            n=n, range=(0.0, 1.0), flags=tuple(flags), correlations=none, mean_square=math.nan,
            mean_square_null=math.nan, ranks=(0, 0),
        )  # fmt: skip
    ranks = found.ranks
    if ranks < tuple(len(m.mean) for m in each) and "keep" not in conventions:
        flags["rank_deficient"] = None
    if n - 1 <= max(ranks):
        flags["few_rows"] = None
    if "keep" in conventions and ranks < tuple(len(m.mean) for m in each):
        flags["se_first_order"] = None  # other rows keep other directions
    return CCAResult(
        value=found.rho.mean(),
        null=null_correlations(n_null, *ranks),
        n=n,
        range=(0.0, 1.0),
        flags=tuple(flags),
        conventions={"centered": True, "pairs": min(ranks), **conventions},
        correlations=found.rho.detach(),
        mean_square=float(found.rho.detach().square().mean()),
        mean_square_null=min(max(ranks) / max(n_null - 1, 1), 1.0),
        ranks=ranks,
    )


cca = as_function(CCA)
