"""Modules that store a tensor in a packed form, or a weight that is not a parameter."""

from math import prod
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Repacks(Protocol):
    """A module whose buffers may be stored in a processor-specific form."""

    def take_back(self) -> None:
        """Restore every buffer to its original form, until the next run."""


@runtime_checkable
class PackedWeight(Protocol):
    """A linear layer whose weight is stored as codes, without a parameter or a gradient."""

    in_features: int
    out_features: int

    def dequantise(self) -> nn.Linear:
        """Return a plain, trainable linear layer with an equal weight in float32."""
        ...


def is_linear(module: Any) -> bool:
    """Return whether a module is a linear layer, plain or with a packed weight."""
    return isinstance(module, nn.Linear | PackedWeight)


def packed_weights(module: nn.Module) -> list[PackedWeight]:
    """Return the submodules whose weight is stored as codes."""
    return [part for part in module.modules() if isinstance(part, PackedWeight)]


def count_weights(module: nn.Module) -> int:
    """Return the number of parameters of a module, including packed weights."""
    packed = sum(part.in_features * part.out_features for part in packed_weights(module))
    packed += sum(map(_packed_length, module.modules()))
    return packed + sum(p.numel() for p in module.parameters())


def _packed_length(part: nn.Module) -> int:
    """Return the number of entries of a parent's tensor whose codes a submodule stores."""
    # Not isinstance of a protocol: since Python 3.12 it does not see buffers.
    held: Any = part
    return prod(held.shape) if hasattr(held, "codes") and hasattr(held, "shape") else 0


def in_own_form(module: nn.Module) -> None:
    """Restore all buffers of a module to the form that files have.

    To be called before buffers are read directly; ``state_dict``, copies and moves do so
    themselves.
    """
    for part in module.modules():
        if isinstance(part, Repacks):
            part.take_back()
