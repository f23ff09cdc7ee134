"""The largest values of each unit, with the rows that hold them."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import rank_key
from sonde.core.state import State
from sonde.core.statistic import Statistic


@dataclass(frozen=True)
class TopKState(State):
    """For each unit the largest values, descending, and where their rows come from."""

    n: int
    values: Float[Tensor, "k dim"]
    draw: Int[Tensor, "k dim"]
    ids: Int[Tensor, "k dim 2"]
    position: Int[Tensor, "k dim"]


@final
@dataclass(frozen=True)
class TopK(Statistic[TopKState]):
    """The ``k`` largest values of each unit and where they stand; ties go to smaller draws. Exact.

    Parameters
    ----------
    k : int, default=16
        How many values of each unit are kept.
    """

    k: int = 16

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"TopK: expected k of at least 1, got {self.k}.")

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        position: Int[Tensor, "row"],
    ) -> TopKState:
        """Return the largest values of a batch."""
        order = torch.argsort(rank_key(draw), stable=True)
        x = x.detach().cpu()[order]
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        values, row = torch.sort(x, dim=0, descending=True, stable=True)
        values, row = values[: self.k], order[row[: self.k]]
        return TopKState(len(x), values, draw[row], ids[row], position[row])

    def update(
        self,
        state: TopKState,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        position: Int[Tensor, "row"],
    ) -> TopKState:
        """Return the largest values after these rows; only units with a larger one are sorted."""
        if len(state.values) < self.k:
            return self.merge(state, self.observe(x, draw, ids, position))
        x, least = x.detach().cpu().to(state.values.dtype), state.values[-1]
        key = rank_key(draw)
        is_tie = (x == least) & (key[:, None] < rank_key(state.draw[-1]))
        unit, row = torch.nonzero(((x > least) | is_tie).T, as_tuple=True)
        n = state.n + len(x)
        units, member, count = torch.unique_consecutive(
            unit, return_inverse=True, return_counts=True
        )
        if len(units) == 0:
            return replace(state, n=n)
        place = torch.arange(len(unit)) - (count.cumsum(0) - count)[member]
        shape = (int(count.max()), len(units))
        more = TopKState(
            0,
            x.new_full(shape, -torch.inf),
            draw.new_full(shape, -1),  # the largest draw
            ids.new_zeros(*shape, 2),
            position.new_zeros(shape),
        )
        more.values[place, member] = x[row, unit]
        more.draw[place, member] = draw[row]
        more.ids[place, member] = ids[row]
        more.position[place, member] = position[row]
        names = ("values", "draw", "ids", "position")
        own = TopKState(0, *(getattr(state, name)[:, units] for name in names))
        merged = self.merge(own, more)
        changed = {
            name: getattr(state, name).index_copy(1, units, getattr(merged, name)) for name in names
        }
        return replace(state, n=n, **changed)

    def merge(self, a: TopKState, b: TopKState) -> TopKState:
        """Return the largest values of both."""
        values, draw, ids, position = (
            torch.cat([getattr(a, name), getattr(b, name)])
            for name in ("values", "draw", "ids", "position")
        )
        by_draw = torch.argsort(rank_key(draw), dim=0, stable=True)
        by_value = torch.argsort(values.gather(0, by_draw), dim=0, descending=True, stable=True)
        row = by_draw.gather(0, by_value)[: self.k]
        wide = row[..., None].expand(*row.shape, 2)
        return TopKState(
            a.n + b.n,
            values.gather(0, row),
            draw.gather(0, row),
            ids.gather(0, wide),
            position.gather(0, row),
        )
