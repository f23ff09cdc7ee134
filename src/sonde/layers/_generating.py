"""Kernels that depend on the map: places of a kernel's entries, and convolution by FFT."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.layers._attending import wide_type


def places(high: int, wide: int) -> Float[Tensor, "high wide 2"]:
    """Return coordinates from -1 to 1 of each entry of a kernel; a side of one entry is at 0."""
    sides = [torch.linspace(-1.0, 1.0, n) if n > 1 else torch.zeros(1) for n in (high, wide)]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)


def context_convolved(
    kernel: Float[Tensor, "dim high wide"], x: Float[Tensor, "row dim high wide"]
) -> Float[Tensor, "row dim high wide"]:
    """Return ``(W * x)`` convolved with ``x``, the kernel's middle at (0, 0).

    States of half types give float32: the FFT has none, and products of states overflow.
    """
    high, wide = x.shape[2:]
    size = (2 * high - 1, 2 * wide - 1)
    x = x.to(wide_type(x))
    if not len(x):
        return torch.zeros_like(x)
    both = torch.fft.rfft2(kernel.to(x) * x, s=size) * torch.fft.rfft2(x, s=size)
    whole = torch.fft.irfft2(both, s=size)
    top, left = high // 2, wide // 2
    return whole[:, :, top : top + high, left : left + wide]


def divided_by_size(x: Float[Tensor, "row dim high wide"]) -> Float[Tensor, "row dim high wide"]:
    """Return each channel of each map divided by its root mean square over positions."""
    return x / (x.square().mean((2, 3), keepdim=True) + 1e-12).sqrt()
