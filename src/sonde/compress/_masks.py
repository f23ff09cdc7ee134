"""Masks of weights to remove: the lowest scores overall, or in each segment of a row (N:M)."""

import re

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import InputError


def check_pattern(owner: str, pattern: str | None) -> None:
    """Raise if a pattern keeps no weight, or more weights than a segment has.

    Raises
    ------
    InputError
        Naming the parameter.
    """
    if pattern is not None:
        kept, run = kept_of(owner, pattern)
        if not 0 < kept <= run:
            raise InputError(
                f"{owner}: expected a pattern that keeps 1 to {run} of every {run} weights, got "
                f"{pattern!r}."
            )


def kept_of(owner: str, pattern: str) -> tuple[int, int]:
    """Return the number of weights that a pattern such as ``2:4`` keeps, and its segment length.

    Raises
    ------
    InputError
        If the text is no pattern.
    """
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match is None:
        raise InputError(f"{owner}: expected a pattern such as '2:4', got {pattern!r}.")
    return int(match[1]), int(match[2])


def check_width(owner: str, pattern: str, width: int, layer: str) -> None:
    """Raise if the rows of a layer cannot be divided into whole segments of a pattern.

    Raises
    ------
    InputError
        Naming the layer.
    """
    _, run = kept_of(owner, pattern)
    if width % run:
        raise InputError(
            f"{owner}.plan: expected rows of a multiple of {run} weights for {pattern}, got "
            f"{width} in {layer}. Leave the layer out with layers=[...], or use a fraction."
        )


def lowest(scores: Float[Tensor, "group n"], n_lowest: int) -> Bool[Tensor, "group n"]:
    """Return a mask of the lowest scores of each group, with ties resolved by index."""
    order = scores.argsort(dim=1, stable=True)[:, :n_lowest]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def lowest_of_runs(scores: Float[Tensor, "out in"], pattern: str) -> Bool[Tensor, "out in"]:
    """Return a mask of the weights that a pattern such as ``2:4`` removes from each segment."""
    kept, run = kept_of("lowest_of_runs", pattern)
    return lowest(scores.reshape(-1, run), run - kept).reshape(scores.shape)
