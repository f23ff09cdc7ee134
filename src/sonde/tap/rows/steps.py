"""Rows of steps from rows of tokens: ``flat`` says which tokens, ``row`` which step each is of."""

import torch
from torch import Tensor

_NARROW = (torch.float16, torch.bfloat16)


def mean_of_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the mean over the tokens of each step, summed in float64 where there is one."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    count = torch.bincount(row).to(dtype)
    out = x.new_zeros(len(count), x.shape[1], dtype=dtype)
    out.index_add_(0, row, x.index_select(0, flat).to(dtype))
    return (out / count[:, None]).to(x.dtype)


def last_of_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the last token of each step."""
    last = torch.zeros(int(row.max()) + 1 if len(row) else 0, dtype=flat.dtype, device=flat.device)
    return x.index_select(0, last.scatter_reduce_(0, row, flat, "amax"))


def mean_before_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the mean over the tokens before those of each step."""
    return mean_of_each(x, flat - 1, row)


def delta_of_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the last token of each step less the one before its first."""
    wide = torch.float32 if x.dtype in _NARROW else x.dtype
    first = torch.full((int(row.max()) + 1 if len(row) else 0,), len(x), device=flat.device)
    first = first.scatter_reduce_(0, row, flat, "amin") - 1
    delta = last_of_each(x, flat, row).to(wide) - x.index_select(0, first).to(wide)
    return delta.to(x.dtype)
