"""Products of float32 rows if the user allows TF32 on the GPU.

The setting holds for the whole process and all its threads, so it is left alone. Each factor is
split into two numbers of TF32, and the product keeps the accuracy of float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor

LOST_BITS = 13
"""By how much the fraction of float32 is longer than that of TF32."""


def transposed_product(
    a: Float[Tensor, "row dim"], b: Float[Tensor, "row dim2"]
) -> Float[Tensor, "dim dim2"]:
    """Return ``a^T b`` at the full precision of its type."""
    if a.dtype != torch.float32 or not rounds_factors(a.device):
        return a.T @ b
    (high, low), (high2, low2) = split(a), split(b)
    return high.T @ high2 + (high.T @ low2 + low.T @ high2)


def rounds_factors(device: torch.device) -> bool:
    """Return whether products of float32 round their factors to 11 significant bits."""
    return device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"


def split(x: Float[Tensor, "row dim"]) -> tuple[Tensor, Tensor]:
    """Return the nearest TF32 numbers and the remainder; they sum to ``x`` exactly."""
    bits = x.contiguous().view(torch.int32)
    high = ((bits + (1 << (LOST_BITS - 1))) & -(1 << LOST_BITS)).view(torch.float32)
    return high, x - high
