"""Patches averaged with those around them, inside a hook."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

WINDOW = 3


def averaged(x: Float[Tensor, "row h w dim"]) -> Float[Tensor, "row h w dim"]:
    """Return the mean of each patch's 3 x 3 neighbourhood, of those that are there, in x's type."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pooled = functional.avg_pool2d(
        wide.movedim(-1, 1), WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False
    )
    return pooled.movedim(1, -1).to(x.dtype)
