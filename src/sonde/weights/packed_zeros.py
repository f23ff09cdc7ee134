"""A layer that holds a weight with many zeros as files have it, while its model is opened.

In memory the weight is an ordinary one: on common processors a product with half of the weights at
0 is not faster than the plain product, and unpacking at each use would make it slower.
"""

from math import prod
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sonde.weights.packed_tensor import PackedTensor
from sonde.weights.packing import packed_length, unpack


class PackedZeros(nn.Module):
    """Holds a pruned weight as files have it, while a model is opened.

    Parameters
    ----------
    layer : nn.Module
        The layer that takes the weight; its bias is read meanwhile under this module's name.
    kept : int
        Entries that are not 0.
    shape : list of int
    """

    mask: Tensor
    kept: Tensor

    def __init__(self, layer: Any, kept: int, shape: list[int]) -> None:
        super().__init__()
        self.layer = [layer]  # in a list: no part of this module
        self.shape = tuple(shape)
        n_bytes = packed_length(prod(shape), 1)
        self.register_buffer("mask", torch.zeros(n_bytes, dtype=torch.uint8))
        self.register_buffer("kept", torch.zeros(kept, dtype=layer.weight.dtype))
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """The weight, for classes that look at it while they are opened."""
        return PackedTensor(self, self.shape, self.kept.dtype, self.kept.device)

    def rows(self, part: Any) -> Float[Tensor, "..."]:
        """Return the rows of the weight that a slice or a tensor selects."""
        return unpacked_zeros(self.mask, self.kept, self.shape)[part]

    def product(self, x: Tensor) -> Tensor:
        """Return ``x W^T``."""
        return functional.linear(x, self.rows(slice(None)))

    def opened(self) -> nn.Module:
        """Return the layer with its weight."""
        (layer,) = self.layer
        weight = self.rows(slice(None))
        layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
        layer.bias = self.bias
        return layer


def unpacked_zeros(
    mask: UInt8[Tensor, "bytes"], kept: Float[Tensor, "n"], shape: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """Return the weight that a mask and its kept entries stand for."""
    there = unpack(mask, 1, prod(shape)).bool()
    whole = torch.zeros(prod(shape), dtype=kept.dtype, device=kept.device)
    whole[there] = kept
    return whole.reshape(shape)
