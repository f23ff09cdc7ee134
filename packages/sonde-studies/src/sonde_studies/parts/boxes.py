"""Fraction of an attribution inside the box of an object."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde import InputError, Model
from sonde.data import open_inputs
from sonde.explain import RawAttention
from sonde_studies.parts.rows import Rows

Box = tuple[float, ...]
"""Top, left, bottom and right, as shares of height and width."""


def box_of(recipe: str, given: Any, column: str) -> Box:
    """Return a box.

    Raises
    ------
    InputError
        If it does not lie in the picture.
    """
    box = tuple(float(v) for v in given) if isinstance(given, Sequence) else ()
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise InputError(
            f"{recipe}: expected boxes of top, left, bottom, right in [0, 1], got {given!r}. "
            f"Name the column: box_column (now {column!r})."
        )
    return box


def looks_at(
    model: Model, items: Rows, boxes: Mapping[int, Box], layer: int, **options: Any
) -> dict[int, float]:
    """Return the attribution in each image's box, relative to the box's area.

    Parameters
    ----------
    model : Model
    items : list of dict
        Pictures whose ``id`` is a number of ``boxes``.
    boxes : mapping of int to Box
    layer : int
        In the order in which attentions run.
    **options
        Of ``open_inputs``.
    """
    inputs = open_inputs(model, items, **options)
    found: dict[int, float] = {}
    for batch in inputs.batches(0, len(inputs)):
        maps = RawAttention(layer).explain(model, batch).by_place.detach().double()
        for name, one in zip(batch.ids, maps, strict=True):
            share = inside(boxes[int(name)], one.shape[0], one.shape[1])
            found[int(name)] = float((one * share).sum() / one.sum() / share.mean())
    return found


def inside(box: Box, height: int, width: int) -> Float[Tensor, "high wide"]:
    """Return how much of each pixel lies in a box, as a fraction of the image."""
    top, left, bottom, right = box
    across = [
        (torch.arange(n + 1).double() / n).clamp(low, high).diff()
        for n, low, high in ((height, top, bottom), (width, left, right))
    ]
    return across[0][:, None] * across[1]
