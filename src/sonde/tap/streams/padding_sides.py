"""Test whether a model gives equal answers for left-padded, right-padded and single texts.

Where sonde itself pads the batches of a stream, both sides are compared. Inputs that come with
padding of their own run as they came; they are compared with the same texts alone.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import nn

from sonde.core.inputs import InputBatch, Inputs
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.small_batches import Side, SmallBatches, small_batches, unpadded
from sonde.tap.streams.soundness import RowCheck, RowFault, Rows

if TYPE_CHECKING:
    from sonde.tap.streams.live import LiveStream

FEW = 8
_log = logging.getLogger("sonde")
_TOLD: WeakSet[nn.Module] = WeakSet()
"""Modules whose padding side was already reported."""


def padding_fault(stream: "LiveStream") -> RowFault | None:
    """Compare short texts padded on either side with unpadded texts; return a fault, if any.

    Three tiny forwards. Where only left padding differs, a log line says that the right was taken.

    Returns
    -------
    RowFault or None
        If padding on the right, which is what the stream reads, changes the rows of a text.
    """
    if isinstance(stream.inputs, ReplayInputs):
        return None
    few = range(min(FEW, len(stream.inputs)))
    if not stream.inputs.pads:
        _tell_given(stream, few)
        return None
    with untouched(stream.model.module), torch.no_grad():
        try:
            small = small_batches(stream.model, stream.inputs, few).shortened()
            return None if isinstance(small, str) else _compared(stream, small)
        except Exception as error:  # whatever a model raises on inputs that are cut
            _log.debug("padding was not compared: %s", error)
    return None


def padding_side(stream: "LiveStream") -> Side:
    """Return the side on which a stream's texts are padded, given or chosen by the processor."""
    own = getattr(stream.model.processor, "padding_side", None)
    return given_side(stream.inputs) or ("left" if own == "left" else "right")


def given_side(inputs: Inputs) -> Side | None:
    """Return the padding side of the first padded inputs that the user gave.

    None if they are not padded, or come with position ids: then the side makes no difference.
    """
    if inputs.pads:
        return None
    for one in _given(inputs, range(min(FEW, len(inputs)))):
        mask = one.mask
        if mask is None or "position_ids" in one.kwargs:
            return None
        if not bool(mask.all()):
            return "right" if bool(mask[0, 0]) else "left"
    return None


def _given(inputs: Inputs, few: range) -> Iterator[InputBatch]:
    """Yield the inputs of single examples, unchanged."""
    for i in few:
        yield from inputs.batches(i, i + 1)


def _tell_given(stream: "LiveStream", few: range) -> None:
    """Log the difference between texts with their given padding and the unpadded texts."""
    module = stream.model.module
    if module in _TOLD:
        return
    with untouched(module), torch.no_grad():
        try:
            fault = _beside_alone(stream, few)
        except Exception as error:  # whatever a model raises on inputs that are cut
            _log.debug(
                "inputs that were given with padding were not compared with inputs without "
                "padding: %s",
                error,
            )
            return
    if fault is not None:
        _TOLD.add(module)
        _log.warning(
            "at %s, padded texts give states that differ by %.3g standard deviations between "
            "rows from those of the same texts without padding; the texts were read with "
            "their padding. Give position_ids that count only real tokens, pad on the other "
            "side, or leave the padding out",
            *fault,
        )


def _beside_alone(stream: "LiveStream", few: range) -> tuple[str, float] | None:
    """Return the first site where given padding changes rows, and the size of the change."""
    every = [one for one in _given(stream.inputs, few) if one.mask is not None]
    if all(bool(one.mask.all()) for one in every if one.mask is not None):
        return None
    check = RowCheck(stream, SmallBatches((), 0, True, True))
    sides: list[Rows] = []
    for change in (lambda one: one, unpadded):
        read = [check.read(change(one), [i], stream.seed) for i, one in enumerate(every)]
        sides.append({
            key: (torch.cat([r[key][0] for r in read]), torch.cat([r[key][1] for r in read]))
            for key in read[0]
        })  # fmt: skip
    return check.first(sides[0], sides[1])


def _compared(stream: "LiveStream", small: SmallBatches) -> RowFault | None:
    check, seed = RowCheck(stream, small), stream.seed
    every = range(len(small))
    alone = check.read(small.together(every[1:]), every[1:], seed)  # all but the first are short
    right = check.read(small.padded("right"), every, seed)
    left = check.read(small.padded("left"), every, seed)
    sides = check.first(left, right)
    fault = check.first(right, alone)
    module = stream.model.module
    if sides is not None and module not in _TOLD:
        _TOLD.add(module)
        _log.warning(
            "at %s, states differ by %.3g standard deviations between rows if texts are "
            "padded on the left instead of on the right; padding on the right was used%s",
            *sides,
            "" if fault is not None else ", which gives the same states as each text by itself",
        )
    return None if fault is None else RowFault(*fault, "padding")
