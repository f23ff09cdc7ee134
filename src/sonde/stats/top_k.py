"""The largest values of each unit, with the rows that hold them."""

from dataclasses import dataclass
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
