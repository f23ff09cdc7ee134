"""Whether a model answers alike for texts padded on the left, on the right, and alone.

Used where the batches of a stream are padded by sonde itself. Inputs that come with padding of
their own run as they came, and are not compared.
"""

import logging
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import nn

from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.small_batches import SmallBatches, small_batches
from sonde.tap.streams.soundness import RowCheck, RowFault

if TYPE_CHECKING:
    from sonde.tap.streams.live import LiveStream

FEW = 8
_log = logging.getLogger("sonde")
_TOLD: WeakSet[nn.Module] = WeakSet()
"""Modules whose padding side was already reported."""


def padding_fault(stream: "LiveStream") -> RowFault | None:
    """Compare short texts padded on either side with the texts alone; say what was found.

    Three tiny forwards. Where only left padding differs, a log line says that the right was taken.

    Returns
    -------
    RowFault or None
        If padding on the right, which is what the stream reads, changes the rows of a text.
    """
    if isinstance(stream.inputs, ReplayInputs) or not stream.inputs.pads:
        return None
    few = range(min(FEW, len(stream.inputs)))
    with untouched(stream.model.module), torch.no_grad():
        try:
            small = small_batches(stream.model, stream.inputs, few).shortened()
            return None if isinstance(small, str) else _compared(stream, small)
        except Exception as error:  # whatever a model raises on inputs that are cut
            _log.debug("padding was not compared: %s", error)
    return None


def _compared(stream: "LiveStream", small: SmallBatches) -> RowFault | None:
    check, seed = RowCheck(stream, small), stream.seed
    every = range(len(small))
    alone = check.read(small.together(every[1:]), every[1:], seed)  # all but the first are short
    right = check.read(small.padded("right"), every, seed)
    left = check.read(small.padded("left"), every, seed)
    sides = check.first(left, right)
    found = check.first(right, alone)
    module = stream.model.module
    if sides is not None and module not in _TOLD:
        _TOLD.add(module)
        _log.warning(
            "texts padded on the left and on the right differ at %s by %.3g times the spread "
            "between rows; the right was taken%s",
            *sides,
            "" if found is not None else ", where each text is as it is alone",
        )
    return None if found is None else RowFault("SND007", *found, "padding")
