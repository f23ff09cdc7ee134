"""Histogram of each unit on a signed logarithmic grid, without prior edges."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.state import State
from sonde.core.statistic import Statistic

SHIFT = 15
_CELLS = 1 << (32 - SHIFT)
_NEVER = torch.iinfo(torch.int32).max

Exact = Callable[[Float[Tensor, "number"]], Int[Tensor, "number"]]


LOW, HIGH, SUB = -40, 24, 4
_SIDE = (HIGH - LOW + 1) * SUB
BINS = 2 * _SIDE + 1


def log_bins(x: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return each number's bin: 0 .. 520 in ascending order, 260 = exactly zero.

    Exponents of two from -40 to 24 with 4 bins each and a sign; smaller and larger magnitudes fall
    into the first and the last bin of their sign. Bins are found by comparison of mantissas, so the
    same number always falls into the same bin.

    Parameters
    ----------
    x : Float[Tensor, "*axes"]
        Numbers to put into bins.
    """
    if x.dtype != torch.float64:
        return table_log_bins(x.float(), _exact_bins)
    return _exact_bins(x)


def _exact_bins(x: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    mantissa, exponent = torch.frexp(x.abs())
    steps = 2.0 ** (torch.arange(1, SUB, dtype=torch.float64, device=x.device) / SUB - 1)
    sub = torch.bucketize(mantissa, steps.to(mantissa.dtype), right=True)
    magnitude = ((exponent.long() - 1 - LOW) * SUB + sub).clamp(0, _SIDE - 1)
    signed = torch.where(x < 0, _SIDE - 1 - magnitude, _SIDE + 1 + magnitude)
    return torch.where(x == 0, _SIDE, signed)


def log_centres() -> Float[Tensor, "bin"]:
    """Return the geometric centre of each bin of ``log_bins``; 0 for the zero bin."""
    up = 2.0 ** (LOW + (torch.arange(_SIDE, dtype=torch.float64) + 0.5) / SUB)
    return torch.cat([-up.flip(0), torch.zeros(1, dtype=torch.float64), up])


@dataclass(frozen=True)
class LogHistogramState(State):
    """Number of rows of each unit in each of the 521 bins of ``log_bins``."""

    n: int
    counts: Int[Tensor, "dim bin"]

    @property
    def magnitudes(self) -> Int[Tensor, "dim bin2"]:
        """Counts of absolute values: zeros first, then the bins above."""
        up, down = self.counts[:, _SIDE + 1 :], self.counts[:, :_SIDE].flip(1)
        return torch.cat([self.counts[:, _SIDE : _SIDE + 1], up + down], dim=1)

    @property
    def clipped(self) -> Bool[Tensor, "dim"]:
        """Mask of units with 10 % of values in the outermost bins, outside 2^-40..2^24."""
        outermost = self.magnitudes[:, [1, -1]].sum(1)
        return outermost > 0.1 * self.n

    def quantile(self, q: float, absolute: bool = False) -> Float[Tensor, "dim"]:
        """Return the centre of the bin that contains quantile ``q``.

        Zeros are rows like any other; a unit that is mostly zero has quantiles of 0.
        """
        counts = self.magnitudes if absolute else self.counts
        centres = log_centres()[_SIDE:] if absolute else log_centres()
        reached = counts.cumsum(1) >= max(q * self.n, 1)
        return centres.to(counts.device)[reached.int().argmax(1)]

    def rebinned(self, edges: Float[Tensor, "edge"]) -> Float[Tensor, "dim bin2"]:
        """Return the counts between other edges, with rows spread evenly inside each bin."""
        up = 2.0 ** (LOW + torch.arange(_SIDE + 1, dtype=torch.float64) / SUB)
        left = torch.cat([-up[1:].flip(0), up.new_zeros(1), up[:-1]])
        nothing = up.new_full((1,), torch.finfo(up.dtype).tiny)  # zeros have a bin without a width
        right = torch.cat([-up[:-1].flip(0), nothing, up[1:]])
        edges = edges.double().cpu()
        cut = torch.bucketize(edges, right, right=True).clamp(max=BINS - 1)
        above = ((right[cut] - edges) / (right[cut] - left[cut])).clamp(0.0, 1.0)
        counts = self.counts.double()
        cut, above = cut.to(counts.device), above.to(counts.device)
        below = counts.cumsum(1)[:, cut] - counts[:, cut] * above
        none = counts.new_zeros(len(counts), 1)
        return torch.diff(below, prepend=none, append=none + self.n)


@final
@dataclass(frozen=True)
class LogHistogram(Statistic[LogHistogramState]):
    """Histogram of values or column products on a signed logarithmic grid; independent of splits.

    Parameters
    ----------
    columns : tuple of str, default=("x",)
        ``("x",)``, or ``("x", "grad")`` for activation times gradient.
    """

    columns: tuple[str, ...] = ("x",)

    def __post_init__(self) -> None:
        if self.columns not in (("x",), ("grad",), ("x", "grad")):
            raise InputError(
                "LogHistogram: expected columns ('x',), ('grad',) or ('x', 'grad'), "
                f"got {self.columns}."
            )

    def needs(self) -> tuple[str, ...]:
        """Return the columns of the product."""
        return self.columns

    def observe(
        self, x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"] | None = None
    ) -> LogHistogramState:
        """Return the counts of a batch."""
        z = x if x.dtype in (torch.float32, torch.float64) else x.float()
        z = z if grad is None else z * grad.to(z)
        dim = x.shape[1]
        index = log_bins(z) + torch.arange(dim, dtype=torch.int32, device=x.device) * BINS
        counts = torch.bincount(index.flatten(), minlength=dim * BINS)
        return LogHistogramState(len(x), counts.reshape(dim, BINS))

    def merge(self, a: LogHistogramState, b: LogHistogramState) -> LogHistogramState:
        """Return the joined counts."""
        return LogHistogramState(a.n + b.n, a.counts + b.counts)


# Numbers with equal sign, exponent and first 8 bits of mantissa form a cell, in which at most one
# edge lies, so the table holds for each cell its first bin, the step to its last bin, and the first
# bit pattern past the edge.
def table_log_bins(x: Float[Tensor, "*shape"], exact: Exact) -> Int[Tensor, "*shape"]:
    """Return ``exact(x)`` for float32 numbers; NaN counts as a large number."""
    first, step, edge = _table(exact, x.device)
    bits = x.contiguous().view(torch.int32).flatten()
    cell = (bits >> SHIFT).bitwise_and_(_CELLS - 1)
    past = bits.bitwise_and(_NEVER) >= edge.index_select(0, cell)
    out = first.index_select(0, cell)
    out += past * step.index_select(0, cell)
    return out.view(x.shape)


@lru_cache(maxsize=4)
def _table(exact: Exact, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    cells = torch.arange(_CELLS, dtype=torch.int64)
    sign, magnitude = cells >> (31 - SHIFT), (cells << SHIFT) & _NEVER
    # Patterns of infinity and NaN take the bin of the largest finite numbers of their sign.
    top = torch.tensor(torch.finfo(torch.float32).max).view(torch.int32).long()

    def bins(patterns: Tensor, sign: Tensor) -> Tensor:
        value = patterns.clamp(max=int(top)).int().view(torch.float32)
        return exact(torch.where(sign > 0, -value, value))

    first = bins(magnitude, sign)
    step = bins(magnitude + (1 << SHIFT) - 1, sign) - first
    edge = torch.full_like(magnitude, _NEVER)
    cut = torch.nonzero(step).flatten()  # few cells hold an edge
    low, high = magnitude[cut], magnitude[cut] + (1 << SHIFT) - 1
    for _ in range(SHIFT + 1):
        middle = (low + high) // 2
        before = bins(middle, sign[cut]) == first[cut]
        low, high = torch.where(before, middle + 1, low), torch.where(before, high, middle)
    edge[cut] = low
    return first.to(device, torch.int32), step.to(device, torch.int32), edge.to(device, torch.int32)
