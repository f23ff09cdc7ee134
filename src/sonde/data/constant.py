"""Which inputs of a batch hold one value everywhere: black pictures, silence, empty rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.token_masks import NAMES

LEAST = 8
MAP = 4


def constant_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bool[Tensor, "example"] | None:
    """Return for each example whether its inputs are constant, each channel of a map on its own.

    None if the model is given whole numbers, such as tokens, or fewer than eight numbers.
    """
    given = [*args, *(value for name, value in kwargs.items() if name not in NAMES)]
    tensors = [x for x in given if isinstance(x, Tensor) and x.ndim > 0]
    if not tensors or any(not x.is_floating_point() for x in tensors):
        return None
    if any(x.ndim < 2 or x[:1].numel() < LEAST for x in tensors):
        return None
    return torch.stack([_constant(x) for x in tensors]).all(0)


def _constant(x: Tensor) -> Bool[Tensor, "example"]:
    """Return whether channels of a map, lines or columns of a sequence, or rows are constant."""
    if x.ndim >= MAP:
        x = x.flatten(2)
        return (x.amax(2) == x.amin(2)).all(1)
    if x.ndim == 2:
        return x.amax(1) == x.amin(1)
    found = [(x.amax(a) == x.amin(a)).all(1) for a in (1, 2) if x.shape[a] > 1]
    return torch.stack(found).any(0)
