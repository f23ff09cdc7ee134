"""A few rows such that every row is near one of them, with the covering radius."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.hashing import rank_key
from sonde.core.ranges import check_ranges
from sonde.core.state import State
from sonde.core.statistic import Merging, Statistic

CHUNK = 4096
COARSE = 100  # squares up to so many times the rounding are those of float64


@dataclass(frozen=True)
class CoresetState(State):
    """Selected rows; each of the ``n`` rows seen is within ``cover`` of one of them.

    When rows were last dropped, the farthest dropped row lay at distance ``apart`` from its chosen
    row.
    """

    n: int
    rows: Float[Tensor, "chosen dim"]
    cover: Float[Tensor, "chosen"]
    draw: Int[Tensor, "chosen"]
    apart: float

    @property
    def radius(self) -> float:
        """Upper bound on the distance of a row from its selected row."""
        return float(self.cover.max())

    @property
    def is_everything(self) -> bool:
        """True if every row seen is among the selected rows."""
        return self.n == len(self.draw)


@final
@dataclass(frozen=True)
class Coreset(Statistic[CoresetState]):
    """At most ``m`` rows that cover all others, selected farthest first.

    The first row is that of smallest draw; each next row is the farthest from the rows chosen
    before. If at most 4,096 rows (or ``2 m``) come at once, the radius is at most twice the best
    possible. A later row within ``apart`` of a chosen row is counted to that row. Other rows
    compete with the chosen rows by their distance plus their cover. A chosen row that is dropped
    hands its cover, plus its distance, to the nearest row that stays.

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
        check_ranges(self, m=">= 1")

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of ``m`` float32 rows with cover and sampling key."""
        return self.m * (4 * dims[0] + 16)

    def observe(self, x: Float[Tensor, "row dim"], draw: Int[Tensor, "row"]) -> CoresetState:
        """Return the selected rows of a batch."""
        return self._extended(None, x, draw)

    def update(
        self, state: CoresetState, x: Float[Tensor, "row dim"], draw: Int[Tensor, "row"]
    ) -> CoresetState:
        """Return the selected rows after a batch; new rows within ``apart`` of them are skipped."""
        return self._extended(state, x, draw)

    def merge(self, a: CoresetState, b: CoresetState) -> CoresetState:
        """Return rows selected from both sets."""
        columns = [
            torch.cat([getattr(a, c), getattr(b, c).to(getattr(a, c))])
            for c in ("rows", "cover", "draw")
        ]
        return self._chosen(a.n + b.n, *columns)

    def bound(self, state: CoresetState) -> float:
        """Return the covering radius."""
        return state.radius

    def _extended(self, state: CoresetState | None, x: Tensor, draw: Tensor) -> CoresetState:
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        order = torch.argsort(rank_key(draw), stable=True)
        for part in order.split(max(CHUNK, 2 * self.m)):
            rows, place = x[part.to(x.device)], draw[part]
            cover = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
            if state is None:
                state = self._chosen(len(rows), rows, cover, place)
                continue
            near, gap = _nearest(rows.to(state.rows), state.rows)
            inside = gap <= state.apart
            covered = state.cover.scatter_reduce(0, near[inside], gap[inside], "amax")
            n_inside, out = int(inside.sum()), ~inside
            state = replace(state, n=state.n + n_inside, cover=covered)
            if n_inside < len(rows):
                new = CoresetState(len(rows) - n_inside, rows[out], cover[out], place[out.cpu()], 0)
                state = self.merge(state, new)
        assert state is not None  # observe and update never see zero rows
        return state

    def _chosen(self, n: int, rows: Tensor, cover: Tensor, draw: Tensor) -> CoresetState:
        order = torch.argsort(rank_key(draw), stable=True)
        there = order.to(rows.device)
        rows, cover, draw = rows[there], cover[there], draw[order]
        if len(rows) <= self.m:
            return CoresetState(n, rows, cover, draw, 0.0)
        picked, owner = _farthest_first(rows, cover, self.m)
        chosen = rows[picked]
        gap = (rows.double() - chosen[owner].double()).norm(dim=1)
        spread = torch.zeros(len(picked), dtype=torch.float64, device=rows.device)
        spread.scatter_reduce_(0, owner, gap + cover, "amax")
        return CoresetState(n, chosen, spread, draw[picked.cpu()], float(gap.max()))


def _farthest_first(
    rows: Float[Tensor, "row dim"], cover: Float[Tensor, "row"], m: int
) -> tuple[Int[Tensor, "chosen"], Int[Tensor, "row"]]:
    """Return ``m`` rows, each farthest from the earlier ones, and each row's nearest of them.

    The cover of a row is added to its distance. Ends early if every other row equals a chosen row,
    up to rounding. Continues in float64 if float32 rounding would decide.
    """
    z, square, least = _centred(rows)
    gap = torch.full_like(square, torch.inf)
    owner = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    cover, picked = cover.to(rows.dtype), [0]
    while True:
        last = picked[-1]
        fresh = torch.addmv(square + square[last], z, z[last], alpha=-2.0)
        fresh[last] = 0.0
        owner[fresh < gap] = len(picked) - 1
        torch.minimum(gap, fresh, out=gap)
        reach = (gap.clamp(min=0.0).sqrt() + cover).masked_fill_(gap <= least, 0.0)
        far = int(reach.argmax())
        if z.dtype == torch.float32 and float(reach[far]) ** 2 <= COARSE * least:
            z, square, least = _centred(rows.double())
            gap = (z - z[torch.tensor(picked, device=rows.device)[owner]]).square().sum(1)
            cover = cover.double()
            reach = (gap.sqrt() + cover).masked_fill_(gap <= least, 0.0)
            far = int(reach.argmax())
        if len(picked) == m or float(reach[far]) == 0.0:
            return torch.tensor(picked, device=rows.device), owner
        picked.append(far)


def _nearest(
    x: Float[Tensor, "row dim"], chosen: Float[Tensor, "chosen dim"]
) -> tuple[Int[Tensor, "row"], Float[Tensor, "row"]]:
    """Return each row's approximately nearest selected row, and the exact distance to it.

    Rows too near for the resolution of float32 products are compared in float64.
    """
    z, square, least = _centred(chosen)
    apart = x - chosen.mean(0)
    near = torch.addmm(square, apart, z.T, alpha=-2.0).argmin(1)
    gap = (x.double() - chosen[near].double()).norm(dim=1)
    rounding = least + 8 * torch.finfo(x.dtype).eps * apart.square().sum(1)
    unsure = torch.nonzero(gap.square() <= COARSE * rounding).flatten()
    if len(unsure) and x.dtype == torch.float32:
        near[unsure], gap[unsure] = _nearest(x[unsure].double(), chosen.double())
    return near, gap


def _centred(
    rows: Float[Tensor, "row dim"],
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row"], float]:
    """Return centred rows, their squared lengths, and the rounding error of the squares."""
    z = rows - rows.mean(0)
    square = z.square().sum(1)
    return z, square, 8 * torch.finfo(rows.dtype).eps * float(square.max())
