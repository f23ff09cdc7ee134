"""A few rows near which every row lies, with the radius that makes this true."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import rank_key
from sonde.core.state import State
from sonde.core.statistic import Merging, Statistic


@dataclass(frozen=True)
class CoresetState(State):
    """Chosen rows; each of the ``n`` rows seen lies within ``radius`` of one of them."""

    n: int
    radius: float
    rows: Float[Tensor, "chosen dim"]
    draw: Int[Tensor, "chosen"]


@final
@dataclass(frozen=True)
class Coreset(Statistic[CoresetState]):
    """At most ``m`` rows that cover all others, chosen farthest first.

    The first is the row of smallest draw; each next one is the row farthest from those chosen. A
    merge chooses anew among both sets, and the radii add up, so fewer merges give a tighter radius.

    Parameters
    ----------
    m : int, default=2048
        Most rows that are kept.

    References
    ----------
    gonzalez1985clustering
    """

    merging: ClassVar[Merging] = "bounded"
    m: int = 2048

    def __post_init__(self) -> None:
        if self.m < 1:
            raise InputError(f"Coreset: expected m of at least 1, got {self.m}.")

    def observe(self, x: Float[Tensor, "row dim"], draw: Int[Tensor, "row"]) -> CoresetState:
        """Return the chosen rows of a batch."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return self._chosen(len(x), 0.0, x, draw)

    def merge(self, a: CoresetState, b: CoresetState) -> CoresetState:
        """Return rows chosen from both sets."""
        rows, draw = torch.cat([a.rows, b.rows]), torch.cat([a.draw, b.draw])
        return self._chosen(a.n + b.n, max(a.radius, b.radius), rows, draw)

    def bound(self, state: CoresetState) -> float:
        """Return the covering radius."""
        return state.radius

    def _chosen(self, n: int, radius: float, rows: Tensor, draw: Tensor) -> CoresetState:
        order = torch.argsort(rank_key(draw), stable=True)
        rows, draw = rows[order.to(rows.device)], draw[order]
        if len(rows) <= self.m:
            return CoresetState(n, radius, rows.clone(), draw)
        picked = [0]
        distance = _distance(rows, rows[0])
        while len(picked) < self.m and float(distance.max()) > 0:
            picked.append(int(distance.argmax()))
            distance = torch.minimum(distance, _distance(rows, rows[picked[-1]]))
        index = torch.tensor(picked)
        chosen = rows[index.to(rows.device)]
        return CoresetState(n, radius + float(distance.max()), chosen, draw[index])


def _distance(rows: Float[Tensor, "row dim"], centre: Float[Tensor, "dim"]) -> Float[Tensor, "row"]:
    return (rows - centre).square().sum(1, dtype=torch.float64).sqrt()
