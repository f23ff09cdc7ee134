"""Modules that hold a tensor in another form while they run, or a weight that is no parameter."""

from math import prod
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Repacks(Protocol):
    """A module whose buffers may be held in a form for the processor."""

    def take_back(self) -> None:
        """Hold every buffer in its own form again, until the next run."""


@runtime_checkable
class PackedWeight(Protocol):
    """A linear layer whose weight is held as codes: no parameter, and no gradient flows through."""

    in_features: int
    out_features: int

    def dequantise(self) -> nn.Linear:
        """Return a plain linear layer with the same weight in float32, which can be trained."""
        ...


@runtime_checkable
class PackedCodes(Protocol):
    """A part that holds the codes of a tensor of the module that it belongs to."""

    shape: tuple[int, ...]
    codes: Any


def is_linear(module: Any) -> bool:
    """Return whether a module is a linear layer, plain or with a packed weight."""
    return isinstance(module, nn.Linear | PackedWeight)


def packed_weights(module: nn.Module) -> list[PackedWeight]:
    """Return the parts of a module whose weight is held as codes."""
    return [part for part in module.modules() if isinstance(part, PackedWeight)]


def count_weights(module: nn.Module) -> int:
    """Return the number of parameters of a module, with the weights of packed layers."""
    packed = sum(part.in_features * part.out_features for part in packed_weights(module))
    packed += sum(prod(part.shape) for part in module.modules() if isinstance(part, PackedCodes))
    return packed + sum(p.numel() for p in module.parameters())


def in_own_form(module: nn.Module) -> None:
    """Let all parts of a module hold their buffers in the form that files have.

    To be called before buffers are read directly; ``state_dict``, copies and moves do so
    themselves.
    """
    for part in module.modules():
        if isinstance(part, Repacks):
            part.take_back()
