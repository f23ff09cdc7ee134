"""Rows without random numbers, and the finite-difference check of influence formulas."""

import torch
from torch import Tensor


def sine_rows() -> tuple[Tensor, Tensor]:
    """Return 60 x 5 and 60 x 4 rows made of sines."""
    i, j = torch.arange(1.0, 61, dtype=torch.float64)[:, None], torch.arange(1.0, 6)[None].double()
    x = torch.sin(i * j)
    y = torch.sin(0.7 * i * j[:, :4] + 0.3) + 0.5 * x[:, :4]
    return x, y
