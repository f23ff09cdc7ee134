"""The largest values of each unit, with their rows."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.hashing import rank_key
from sonde.core.ranges import check_ranges
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats._reaching import growing_parts, reaching


@dataclass(frozen=True)
class TopKState(State):
    """The largest values of each unit, descending, and their rows' positions."""

    n: int
    values: Float[Tensor, "k dim"]
    draw: Int[Tensor, "k dim"]
    ids: Int[Tensor, "k dim 2"]
    position: Int[Tensor, "k dim"]


@final
@dataclass(frozen=True)
class TopK(Statistic[TopKState]):
    """The ``k`` largest values of each unit and their rows; ties go to smaller keys.

    Parameters
    ----------
    k : int, default=16
        How many values of each unit are kept.
    """

    k: int = 16

    def __post_init__(self) -> None:
        check_ranges(self, k=">= 1")

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        position: Int[Tensor, "row"],
    ) -> TopKState:
        """Return the largest values of a batch."""
        x = x.detach().cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        order = torch.argsort(rank_key(draw), stable=True)
        state = self._sorted(x, order[: self.k], draw, ids, position)
        for rows in growing_parts(order[self.k :]):
            state = self.update(state, x[rows], draw[rows], ids[rows], position[rows])
        return state

    def update(
        self,
        state: TopKState,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        position: Int[Tensor, "row"],
    ) -> TopKState:
        """Return the largest values after these rows; only units with a larger value are sorted."""
        if len(state.values) < self.k:
            return self.merge(state, self.observe(x, draw, ids, position))
        x, n = x.detach().cpu().to(state.values.dtype), state.n + len(x)
        least, last, key = state.values[-1], rank_key(state.draw[-1]), rank_key(draw)
        more_than_least = torch.nextafter(least, torch.full_like(least, torch.inf))
        row, unit = reaching(x, key, lambda own: torch.where(own < last, least, more_than_least))
        is_larger = (x[row, unit] > least[unit]) | (key[row] < last[unit])
        place = torch.sort((unit * len(x) + row)[is_larger]).values
        unit, row = place // len(x), place % len(x)
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

    def _sorted(
        self, x: Tensor, rows: Tensor, draw: Tensor, ids: Tensor, position: Tensor
    ) -> TopKState:
        """Return the values of a few rows by sampling key."""
        values, place = torch.sort(x[rows], dim=0, descending=True, stable=True)
        row = rows[place]
        return TopKState(len(rows), values, draw[row], ids[row], position[row])

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
