"""The largest magnitude of each unit, and the rows with the largest entries of all."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.hashing import rank_key
from sonde.core.state import State
from sonde.core.statistic import Statistic


@dataclass(frozen=True)
class ExtremesState(State):
    """Largest ``|x|`` of each unit, and the rows of largest entries, descending.

    ``value`` is that entry with its sign, ``unit`` where it stands, ``order`` the planned index of
    the row's example, ``ids`` and ``position`` its identity.
    """

    n: int
    largest: Float[Tensor, "dim"]
    value: Float[Tensor, "top"]
    unit: Int[Tensor, "top"]
    order: Int[Tensor, "top"]
    position: Int[Tensor, "top"]
    ids: Int[Tensor, "top 2"]
    draw: Int[Tensor, "top"]


@final
@dataclass(frozen=True)
class Extremes(Statistic[ExtremesState]):
    """Largest magnitudes, and the rows with the largest entries of all, however rows are divided.

    Ties go to the smaller draw.

    Parameters
    ----------
    rows : int, default=8
        How many rows are named.
    """

    rows: int = 8

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        order: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        draw: Int[Tensor, "row"],
    ) -> ExtremesState:
        """Return the extremes of a batch."""
        size = x.detach().abs()
        each = size.amax(1)
        # Only the rows that may be among the largest are looked at one by one.
        least = each.topk(min(self.rows, len(each))).values[-1]
        rows = torch.nonzero(each >= least).flatten()
        unit = size[rows].argmax(1)
        value = x.detach()[rows, unit].double().cpu()
        kept = rows.cpu()
        columns = (value, unit.cpu(), order[kept], position[kept], ids[kept], draw[kept])
        return self._top(len(x), size.amax(0).double(), columns)

    def merge(self, a: ExtremesState, b: ExtremesState) -> ExtremesState:
        """Return the joined extremes."""
        names = ("value", "unit", "order", "position", "ids", "draw")
        columns = tuple(torch.cat([getattr(a, name), getattr(b, name)]) for name in names)
        return self._top(a.n + b.n, torch.maximum(a.largest, b.largest), columns)

    def _top(self, n: int, largest: Tensor, columns: tuple[Tensor, ...]) -> ExtremesState:
        by_draw = torch.argsort(rank_key(columns[-1]), stable=True)
        size = columns[0].abs()[by_draw]
        rows = by_draw[torch.argsort(size, descending=True, stable=True)][: self.rows]
        return ExtremesState(n, largest, *(c[rows] for c in columns))
