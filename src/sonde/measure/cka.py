"""Similarity of two sites over all rows: centred kernel alignment.

For all pairs of layers at once, from a sample, see ``layer_cka``.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span, Statistic
from sonde.measure._flags import SMALLEST
from sonde.stats import CrossMoments, CrossMomentsState, Moments, MomentsState
from sonde.stats.grouped_hsic_sums import GroupedHsicSums, GroupedHsicSumsState
from sonde.stats.hsic_sums import HsicSums, HsicSumsState

Sums = HsicSumsState | GroupedHsicSumsState


@final
@dataclass(frozen=True, kw_only=True)
class CKAResult(Result):
    """Similarity of two sites; ``angle`` is its arc cosine, a metric for the biased form."""

    direction: Direction = "higher"
    angle: float


@final
@dataclass(frozen=True)
class CKA(Instrument):
    """Linear centred kernel alignment of two sites, debiased.

    How far the two sites agree on which rows are alike. ``h(K, L) / sqrt(h(K, K) h(L, L))`` with
    the unbiased independence criterion ``h``, from sums alone; unrelated sites give 0 on average.
    With ``debiased=False``: ``|C|^2 / (|S_x| |S_y|)`` (Frobenius norms), whose null is
    ``tr S_x tr S_y / ((n - 1) |S_x| |S_y|)``, 0.8 for 100 white rows of width 400.

    Range        [0, 1]; debiased also below 0 by chance, never clamped; higher = more alike.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim dim2).
    Assumes      rows of different groups are independent. Debiased values of unrelated sites have
                 the standard deviation ``sqrt(2) / n``; within three standard deviations of 0 the
                 error is some 1.6 times too wide (flag ``se_first_order``).
    Differs      from the paper: debiased by default.

    Parameters
    ----------
    debiased : bool, default=True
        The unbiased estimator.
    grouped : bool or None, default=None
        Compare rows of different groups only, each group counting once. None: if rows come in
        groups, or an example has several rows. A split of the rows must keep groups whole.

    Examples
    --------
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> round(cka(x, 2 * x.flip(1) + 5).value, 6)
    1.0

    References
    ----------
    kornblith2019cka, song2012hsic
    """

    debiased: bool = True
    grouped: bool | None = None
    span: ClassVar[Span] = "pair"
    least_rows: ClassVar[int] = 4
    paper: ClassVar[str] = "kornblith2019cka"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"debiased": False},
        {"grouped": True},
    )

    def in_groups(self) -> "CKA":
        """Return the measure restricted to rows of different groups, unless ``grouped`` is set."""
        return replace(self, grouped=True) if self.debiased and self.grouped is None else self

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for sums of the pair and of each site with itself."""
        if not self.debiased:
            return {"cross": CrossMoments(), "each": Moments()}
        sums = GroupedHsicSums if self.grouped else HsicSums
        return {"pair": sums("xy"), "first": sums("xx"), "second": sums("yy")}

    def result(
        self,
        pair: Sums | None = None,
        first: Sums | None = None,
        second: Sums | None = None,
        cross: CrossMomentsState | None = None,
        each: tuple[MomentsState, MomentsState] | None = None,
        independent: float | None = None,
    ) -> CKAResult:
        """Divide the pair's criterion by the sites' own criteria."""
        if cross is not None and each is not None:
            return self._biased(cross, *each, independent or cross.n)
        assert pair is not None  # guaranteed by reads
        assert first is not None
        assert second is not None
        dims = len(pair.reference_x), len(pair.reference_y)
        squares = first.square_x, second.square_x
        return self._answer(pair.hsic, first.hsic, second.hsic, squares, pair.n, 0.0, dims)

    def _biased(
        self, cross: CrossMomentsState, x: MomentsState, y: MomentsState, independent: float
    ) -> CKAResult:
        n, (p, q) = cross.n, cross.cross.shape
        square = [m.square().sum() for m in (cross.cross, x.scatter, y.scatter)]
        squares = x.scatter.trace(), y.scatter.trace()
        ratio = squares[0] / square[1].sqrt() * (squares[1] / square[2].sqrt())
        null = float(ratio.detach()) / max(independent - 1, 1)
        return self._answer(square[0], square[1], square[2], squares, n, null, (p, q))

    def _answer(
        self,
        pair: Float[Tensor, ""],
        first: Float[Tensor, ""],
        second: Float[Tensor, ""],
        squares: tuple[Float[Tensor, ""], Float[Tensor, ""]],
        n: int,
        null: float,
        dims: tuple[int, int],
    ) -> CKAResult:
        flags = ["few_rows"] if n <= max(dims) else []
        value: float | Tensor = math.nan
        own = min(float(first.detach()), float(second.detach()))
        if not all(bool(square.detach() > 0) for square in squares):
            flags.append("dead")
        elif abs(own) < SMALLEST:
            flags.append("lost_precision")
        elif own > 0:
            value = pair / (first.sqrt() * second.sqrt())
        elif "few_rows" not in flags:
            flags.append("few_rows")
        number = float(torch.as_tensor(value).detach())
        if self.debiased and abs(number) * n < 3 * math.sqrt(2):
            flags.append("se_first_order")
        return CKAResult(
            value=value,
            null=null,
            n=n,
            range=(0.0, 1.0),
            flags=tuple(flags),
            conventions={
                "debiased": self.debiased,
                "centered": True,
                "kernel": "linear",
                "rows": "groups" if self.grouped else "independent",
            },
            angle=math.acos(number) if abs(number) <= 1.0 else math.nan,
        )


cka = as_function(CKA, optional=("group",))
