"""Batches of inputs for several forward passes, in whichever form the inputs are given."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sonde.core.inputs import InputBatch, Inputs
from sonde.tap.hooks.call import CallArguments
from sonde.tap.streams.site_function import arguments_of

UNIT = 256


def batches_of(inputs: Any) -> Iterator[Any]:
    """Yield the input of each forward pass.

    Parameters
    ----------
    inputs : Inputs, Tensor, tuple, dict, InputBatch, or an iterable of the latter
    """
    if isinstance(inputs, Inputs):
        for start in range(0, len(inputs), UNIT):
            yield from inputs.batches(start, min(start + UNIT, len(inputs)))
    elif isinstance(inputs, InputBatch | Tensor | tuple | Mapping) or not isinstance(
        inputs, Iterable
    ):
        yield inputs
    else:
        yield from inputs


def batch_of(module: nn.Module, inputs: Any) -> InputBatch:
    """Return the inputs of one call as a batch whose examples are identified by their index."""
    if isinstance(inputs, InputBatch):
        return inputs
    call = CallArguments(module, *arguments_of(module, inputs))
    first = next((x for x in call.named.values() if isinstance(x, Tensor) and x.ndim), None)
    return call.inputs(0 if first is None else len(first), None)
