"""Distances between neighbouring groups in the planned order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.sequences import by_example

BLOCKS, BLOCK_ROWS = 16, 16


@dataclass(frozen=True)
class NeighbourSumsState(State):
    """Counts of all pairs and equal-label pairs, and squared distances, in 16 blocks."""

    pairs: Int[Tensor, "block"]
    squares: Float[Tensor, "block"]
    alike: Int[Tensor, "block"]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Mean squared distance of neighbours; NaN without a pair."""
        return self.squares.sum() / self.pairs.sum()

    @property
    def se(self) -> float:
        """Standard error of ``mean``; NaN below two blocks."""
        return self.over(torch.ones_like)[1]

    def over(self, expected: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Return ``mean`` over ``expected`` of the fraction of equal-label pairs, and its error.

        The standard error comes from leaving out one block at a time; it is NaN below two blocks.
        """
        used = self.pairs > 0
        count = int(used.sum())

        def ratio(pairs: Tensor, squares: Tensor, alike: Tensor) -> Tensor:
            return squares / pairs / expected(alike.double() / pairs)

        blocks = (self.pairs, self.squares, self.alike)
        value = float(ratio(*(c.sum() for c in blocks)))
        if count < 2:
            return value, float("nan")
        left = ratio(*(c.sum() - c[used] for c in blocks))
        return value, float(((count - 1) / count * (left - left.mean()).square().sum()).sqrt())


@final
@dataclass(frozen=True)
class NeighbourSums(Statistic[NeighbourSumsState]):
    """Sums of ``|x_i - x_(i+1)|^2`` over adjacent rows of different groups.

    Only pairs inside one ``observe`` call count: each work unit comes whole, and pairs across two
    units are left out. A pair belongs to block ``(order // 16) mod 16`` of its first row.
    """

    whole_groups: ClassVar[bool] = True

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        order: Int[Tensor, "row"],
        group: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
        label: Int[Tensor, "row"],
    ) -> NeighbourSumsState:
        """Return the sums over adjacent rows among these."""
        rows = by_example(order, position).rows
        first, second = rows[:-1], rows[1:]
        apart = group[first] != group[second]
        first, second = first[apart], second[apart]
        wide = x.detach().double()
        gap = wide[second.to(x.device)] - wide[first.to(x.device)]
        block = order[first] // BLOCK_ROWS % BLOCKS
        squares = torch.zeros(BLOCKS, dtype=torch.float64)
        squares.index_add_(0, block, gap.square().sum(1).cpu())
        alike = block[label[first] == label[second]]
        counts = (torch.bincount(b, minlength=BLOCKS) for b in (block, alike))
        return NeighbourSumsState(next(counts), squares, next(counts))

    def merge(self, a: NeighbourSumsState, b: NeighbourSumsState) -> NeighbourSumsState:
        """Return the joined sums."""
        return NeighbourSumsState(a.pairs + b.pairs, a.squares + b.squares, a.alike + b.alike)
