"""Move padding to the other side, for generation and for reading generated texts."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch
from sonde.tap.model.vary import MAP, token_axes, token_ids
from sonde.tap.rows.frame import all_set


def right_padded(batch: InputBatch) -> InputBatch:
    """Return the batch with real tokens first in each row, or itself if they already are.

    Models differ in how they count positions from a left-padded mask (some not at all, some with an
    offset); all of them count right from the left edge.
    """
    mask = batch.mask
    if mask is None or all_set(mask) or not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        return batch
    return _reordered(batch, mask, (~mask).to(torch.uint8).argsort(dim=1, stable=True))


def left_padded(batch: InputBatch) -> InputBatch:
    """Return the batch with real tokens last in each row, as generation needs it."""
    mask = batch.mask
    if mask is None or not bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        return batch
    return _reordered(batch, mask, mask.to(torch.uint8).argsort(dim=1, stable=True))


def _reordered(batch: InputBatch, mask: Tensor, order: Tensor) -> InputBatch:
    return replace(
        batch,
        args=tuple(_moved(x, order, str(i), batch) for i, x in enumerate(batch.args)),
        kwargs={name: _moved(x, order, name, batch) for name, x in batch.kwargs.items()},
        mask=mask.gather(1, order),
        special=None if batch.special is None else batch.special.gather(1, order),
        sink=None if batch.sink is None else batch.sink.gather(1, order),
        segment=None if batch.segment is None else batch.segment.gather(1, order),
        placeholder=None if batch.placeholder is None else batch.placeholder.gather(1, order),
        completion=None if batch.completion is None else batch.completion.gather(1, order),
    )


def _moved(x: Any, order: Tensor, name: str, batch: InputBatch) -> Any:
    if not isinstance(x, Tensor) or name.startswith("decoder_") or name in batch.packed:
        return x
    length = order.shape[1]
    axes = token_axes(name, x, length, batch)
    if len(x) == len(order) and axes:
        for axis in axes:
            shape = [len(order), *(length if a == axis else 1 for a in range(1, x.ndim))]
            x = x.gather(axis, order.to(x.device).view(shape).expand_as(x))
        return x
    is_map = x.is_floating_point() and x.ndim >= MAP and token_ids(batch) is not None
    if length in x.shape[1:] and not is_map:
        raise InputError(
            f"live_stream: the padding of input {name!r} of shape {tuple(x.shape)} cannot be moved "
            "to the other side. Pad on the right for reading, on the left for generating."
        )
    return x


def seems_padded(batch: InputBatch, pad: int | None = None) -> bool:
    """Return whether some examples of a batch without a mask end in padding, and some do not.

    Token ids end in padding if the last id is ``pad`` (0 if none is known). Steps of numbers end in
    padding if all numbers of the last step are zero.
    """
    for x in (*batch.args, *batch.kwargs.values()) if batch.mask is None else ():
        is_sequence = isinstance(x, Tensor) and x.ndim == (3 if x.is_floating_point() else 2)
        if is_sequence and x.shape[0] == len(batch) and x.shape[1] > 1:
            ended = (
                (x[:, -1] == (0 if x.is_floating_point() else pad or 0))
                .reshape(len(x), -1)
                .all(dim=1)
            )
            if bool(ended.any()) and not bool(ended.all()):
                return True
    return False
