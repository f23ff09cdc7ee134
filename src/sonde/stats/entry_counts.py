"""Histogram of all units' entries together, on a grid of float32's leading bits."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Statistic

BINS = 1 << 16
HALF = BINS // 2


@dataclass(frozen=True)
class EntryCountsState(State):
    """Counts of ``n`` rows' entries by the leading 16 bits of float32."""

    n: int
    dim: int
    low: Float[Tensor, ""]
    high: Float[Tensor, ""]
    counts: Int[Tensor, "bin"]

    def quantile(self, q: float) -> float:
        """Return a quantile of all entries, interpolated inside its bin.

        At a whole rank it lies in the bin of the entry at that rank: within 1 part in 128 of that
        entry, and much nearer if entries are dense. Between two ranks it lies near the bin of the
        lower entry. A single value is exact.
        """
        counts = torch.cat([self.counts[HALF:].flip(0), self.counts[:HALF]]).double().cpu()
        upto = counts.cumsum(0)
        rank = q * (float(upto[-1]) - 1.0)
        place = int(torch.searchsorted(upto, torch.tensor(rank, dtype=torch.float64), right=True))
        inside = (rank - float(upto[place] - counts[place]) + 0.5) / float(counts[place])
        if place < HALF:
            near, far = _edge(HALF - 1 - place), _edge(HALF - place)
            value = -far + inside * (far - near)
        else:
            near, far = _edge(place - HALF), _edge(place - HALF + 1)
            value = near + inside * (far - near)
        return min(max(value, float(self.low)), float(self.high))


@final
@dataclass(frozen=True)
class EntryCounts(Statistic[EntryCountsState]):
    """Counts of all entries by sign, exponent and 7 leading bits of the fraction.

    Integers, so any split gives the same bits; a few nanoseconds for each entry, where a sketch
    would sort. For thresholds that all units share.
    """

    relative_width: ClassVar[float] = 2.0**-7

    def observe(self, x: Float[Tensor, "row dim"]) -> EntryCountsState:
        """Return the counts of a batch."""
        leading = x.float().contiguous().view(torch.int32).bitwise_right_shift(16)
        index = leading.bitwise_and_(BINS - 1).flatten()
        counts = torch.bincount(index, minlength=BINS)
        low, high = torch.aminmax(x)
        return EntryCountsState(len(x), x.shape[1], low.double(), high.double(), counts)

    def merge(self, a: EntryCountsState, b: EntryCountsState) -> EntryCountsState:
        """Return the counts of both states."""
        return EntryCountsState(
            a.n + b.n,
            a.dim,
            torch.minimum(a.low, b.low),
            torch.maximum(a.high, b.high),
            a.counts + b.counts,
        )


def _edge(leading: int) -> float:
    """Return the float32 with these leading 16 bits, at most the largest finite number.

    Bins of infinities and NaN have no edges; their rows never arrive here.
    """
    bits = torch.tensor([min(leading, 0x7F80) << 16], dtype=torch.int32)
    return min(float(bits.view(torch.float32)), torch.finfo(torch.float32).max)
