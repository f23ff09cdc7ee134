"""Quantiles of every unit in one pass, with a bound on the rank error."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import splitmix64
from sonde.core.state import State
from sonde.core.statistic import Merging, Statistic


@dataclass(frozen=True)
class QuantilesState(State):
    """Values that represent ``2**level`` rows each, after ``compactions`` compactions."""

    n: int
    compactions: int
    low: Float[Tensor, "dim"]
    high: Float[Tensor, "dim"]
    levels: tuple[Tensor, ...]

    def rank(self, values: Float[Tensor, "query dim"]) -> Float[Tensor, "query dim"]:
        """Return approximately how many rows of each unit are at or below each value."""
        total = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
        for level, kept in enumerate(self.levels):
            ordered = kept.T.contiguous().sort(dim=1).values
            below = torch.searchsorted(ordered, values.to(kept).T.contiguous(), right=True).T
            total += below.double() * 2**level
        return total

    def quantile(self, q: Float[Tensor, "query"]) -> Float[Tensor, "query dim"]:
        """Return the smallest stored value of rank ``q n``; 0 and 1 give the exact range."""
        values = torch.cat(self.levels)
        q = q.to(values.device)
        weight = torch.cat(
            [torch.full((len(v),), 2.0**h, dtype=torch.float64) for h, v in enumerate(self.levels)]
        ).to(values.device)
        ordered, row = values.T.contiguous().sort(dim=1)
        cumulative = weight[row].cumsum(1)
        goal = (q.to(cumulative) * self.n).expand(len(cumulative), -1).contiguous()
        index = torch.searchsorted(cumulative, goal).clamp(max=len(values) - 1)
        out = ordered.gather(1, index).T.double()
        out = torch.where((q <= 0)[:, None], self.low.double(), out)
        return torch.where((q >= 1)[:, None], self.high.double(), out)


@final
@dataclass(frozen=True)
class Quantiles(Statistic[QuantilesState]):
    """A quantile sketch of all units at once: compactors of equal capacity, reproducible.

    Level ``h`` holds values of weight ``2**h``. A level that reaches ``k`` values is sorted, every
    second value moves up, the others are dropped; an odd last value stays. Exact while fewer than
    ``k`` rows were seen; else every rank is right to ``n (levels - 1) / k`` rows for any merge
    tree.

    Parameters
    ----------
    k : int, default=256
        Capacity of a level; even.

    References
    ----------
    karnin2016kll
    """

    merging: ClassVar[Merging] = "bounded"
    k: int = 256

    def __post_init__(self) -> None:
        if self.k < 2 or self.k % 2:
            raise InputError(f"Quantiles: expected an even k of at least 2, got {self.k}.")

    def observe(self, x: Float[Tensor, "row dim"]) -> QuantilesState:
        """Return the sketch of a batch."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return self._compacted(len(x), 0, x.amin(0), x.amax(0), [x.detach().clone()])

    def merge(self, a: QuantilesState, b: QuantilesState) -> QuantilesState:
        """Return the joined sketch."""
        depth = max(len(a.levels), len(b.levels))
        levels = [
            torch.cat([s.levels[h] for s in (a, b) if h < len(s.levels)]) for h in range(depth)
        ]
        return self._compacted(
            a.n + b.n,
            a.compactions + b.compactions,
            torch.minimum(a.low, b.low),
            torch.maximum(a.high, b.high),
            levels,
        )

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of ten full levels, the maximum after a thousand ``k`` rows."""
        return dims[0] * (10 * self.k + 2) * 4

    def bound(self, state: QuantilesState) -> float:
        """Return the largest rank error in rows: ``n (levels - 1) / k``."""
        return state.n * (len(state.levels) - 1) / self.k

    def _compacted(
        self, n: int, compactions: int, low: Tensor, high: Tensor, levels: list[Tensor]
    ) -> QuantilesState:
        level = 0
        while level < len(levels):
            if len(levels[level]) >= self.k:
                ordered = levels[level].T.contiguous().sort(dim=1).values.T
                pairs = len(ordered) // 2 * 2
                coin = int(splitmix64(np.array([compactions * 64 + level], dtype=np.uint64))[0] & 1)
                compactions += 1
                levels[level] = ordered[pairs:].contiguous()
                up = ordered[coin:pairs:2].contiguous()
                if level + 1 == len(levels):
                    levels.append(up)
                else:
                    levels[level + 1] = torch.cat([levels[level + 1], up])
            level += 1
        return QuantilesState(n, compactions, low, high, tuple(levels))
