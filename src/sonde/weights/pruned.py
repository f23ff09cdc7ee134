"""A weight with many zeros: files hold a bit for each entry, and the entries that are not zero.

In memory the weight is an ordinary one: on common processors a product with half of the weights at
0 is not faster than the plain product, and unpacking at each use would make it slower.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sonde.weights.change import Change, narrowed
from sonde.weights.live import put_tensors
from sonde.weights.packing import pack, packed_length, unpack

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@final
@dataclass(frozen=True, eq=False)
class Pruned(Change):
    """Put new values, many of them 0, in place of the whole weight.

    Parameters
    ----------
    values : Float[Tensor, "..."]
        In files they have the narrowest type that holds them exactly: float16, bfloat16, float32 or
        their own.
    """

    values: Float[Tensor, "..."]

    def factors(self) -> dict[str, Tensor]:
        """Return nothing: the values are the new model's own."""
        return {}

    def packs(self, module: nn.Module, name: str) -> bool:
        """Return whether the tensor is the weight of a linear layer or a convolution."""
        path, _, leaf = name.rpartition(".")
        return bool(path) and leaf == "weight" and isinstance(module.get_submodule(path), LAYERS)

    def put_into(self, module: nn.Module, name: str) -> None:
        """Put the values into the layer, which keeps its kind."""
        put_tensors(module, {name: self.values.to(module.get_parameter(name))})

    def replaced(self) -> dict[str, Tensor]:
        """Return a bit for each entry, and the entries that are not 0 in their order."""
        flat = narrowed(self.values).flatten()
        there = flat != 0
        return {"mask": pack(there.to(torch.uint8), 1), "kept": flat[there].contiguous()}

    def told(self) -> dict[str, Any]:
        """Return how many entries are kept, and the shape."""
        return {"kept": int((self.values != 0).sum()), "shape": list(self.values.shape)}

    def words(self) -> str:
        """Return the share of zeros."""
        return f"{float((self.values == 0).double().mean()):.1%} zeros"

    def _of(self, old: Tensor) -> Tensor:
        return self.values.to(old)


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

    def opened(self) -> nn.Module:
        """Return the layer with its weight."""
        (layer,) = self.layer
        weight = unpacked_zeros(self.mask, self.kept, self.shape)
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
