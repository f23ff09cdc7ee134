"""Layouts of a layer's weight: the matrix or its transpose."""

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

Kind = Literal["matrix", "transposed", "maps", "rows"]
"""(out, in); (in, out) as in GPT-2; the kernel of a convolution; a row for each token."""

_MATRIX = {nn.Linear.forward}
_MAPS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}
_ROWS = {nn.Embedding.forward}
_TRANSPOSED = ("transformers.pytorch_utils", "Conv1D")


def kind_of(module: nn.Module) -> Kind | None:
    """Return a layer's weight layout; None if it does more than multiply and add a bias.

    A weight that is made from other tensors at each run (``weight_norm``, ``spectral_norm``) is
    none that a layer holds. A linear layer with a forward of its own is tried on noise.
    """
    forward: Any = type(module).forward
    if module._parameters.get("weight") is None:
        return None
    if (type(module).__module__, type(module).__name__) == _TRANSPOSED:
        return "transposed"
    if forward in _ROWS:
        return None if getattr(module, "max_norm", None) is not None else "rows"
    if forward in _MATRIX or (isinstance(module, nn.Linear) and _multiplies(module)):
        return "matrix"
    return "maps" if forward in _MAPS else None


def is_made(module: nn.Module) -> bool:
    """Return whether a layer's weight is computed from other tensors at each run."""
    kinds = nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d
    has_own = module._parameters.get("weight") is not None
    return isinstance(module, kinds) and not has_own and getattr(module, "weight", None) is not None


@torch.no_grad()
def _multiplies(module: nn.Linear) -> bool:
    """Return whether a custom linear layer computes ``x W^T + bias``, by a test run."""
    weight = module.weight
    if any(True for _ in module.children()) or not {*module._parameters} <= {"weight", "bias"}:
        return False
    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, weight.shape[1], generator=seeded).to(weight.device, weight.dtype)
    try:
        output = type(module).forward(module, x)
    except Exception:  # whatever a class raises for rows that are not its own
        return False
    if not isinstance(output, torch.Tensor) or output.shape != (2, 3, weight.shape[0]):
        return False
    if weight.is_meta:
        return True
    wanted = functional.linear(x, weight, module.bias)
    near = math.sqrt(torch.finfo(weight.dtype).eps) * float(wanted.abs().max())
    return bool((output - wanted).abs().max() <= near)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies rows by a matrix, in any storage format."""
    return kind_of(module) in ("matrix", "transposed")


def in_and_out(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    first, second = layer.weight.shape
    return (first, second) if kind_of(layer) == "transposed" else (second, first)
