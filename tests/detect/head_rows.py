"""Rows that enter a linear head, the same numbers in every library."""

from typing import NamedTuple

import torch
from torch import Tensor


class HeadRows(NamedTuple):
    """Rows to fit on, fresh rows, and the head that takes them."""

    x: Tensor
    fresh: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def head(self):
        return self.weight, self.bias


def made(dtype=torch.float64):
    """Return 50 rows without negative entries, 4 fresh ones, and a head of three classes."""
    row = torch.arange(1, 61, dtype=torch.float64)[:, None]
    unit = torch.arange(1, 7, dtype=torch.float64)[None]
    x = (2.0 * torch.sin(row * unit) + unit / 3.0 + torch.cos(0.37 * row * row)).clamp(min=0)
    weight = torch.cos(1.3 * torch.arange(1, 4, dtype=torch.float64)[:, None] * unit)
    bias = torch.tensor([0.5, -0.25, 0.1], dtype=torch.float64)
    return HeadRows(*(v.to(dtype) for v in (x[:50], x[50:54], weight, bias)))


SMALL_HEAD = (
    torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]], dtype=torch.float64),
    torch.tensor([0.0, -1.0, 0.5], dtype=torch.float64),
)
