"""Which way a layer's weight holds the matrix that the layer multiplies by."""

from typing import Any, Literal

from torch import nn

Kind = Literal["matrix", "transposed", "maps", "rows"]
"""(out, in); (in, out) as in GPT-2; the kernel of a convolution; a row for each token."""

_MATRIX = {nn.Linear.forward}
_MAPS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}
_ROWS = {nn.Embedding.forward}
_TRANSPOSED = ("transformers.pytorch_utils", "Conv1D")


def kind_of(module: nn.Module) -> Kind | None:
    """Return how a layer holds its matrix; None if it does more than multiply and add a bias."""
    forward: Any = type(module).forward
    if (type(module).__module__, type(module).__name__) == _TRANSPOSED:
        return "transposed"
    if forward in _ROWS:
        return None if getattr(module, "max_norm", None) is not None else "rows"
    return "matrix" if forward in _MATRIX else "maps" if forward in _MAPS else None


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies rows by a matrix, however the module stores the matrix."""
    return kind_of(module) in ("matrix", "transposed")


def in_and_out(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    first, second = layer.weight.shape
    return (first, second) if kind_of(layer) == "transposed" else (second, first)
