"""The bins of ``log_bins`` for float32, looked up by the leading bits of each number.

Numbers with equal sign, exponent and first 8 bits of mantissa form a cell, in which at most one
edge lies, so the table holds for each cell its first bin, the step to its last bin, and the first
bit pattern past the edge.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHIFT = 15
_CELLS = 1 << (32 - SHIFT)
_NEVER = torch.iinfo(torch.int32).max

Exact = Callable[[Float[Tensor, "number"]], Int[Tensor, "number"]]


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
