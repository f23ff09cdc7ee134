"""Find the number types of a model's floating-point inputs.

A model of several types casts by itself where it must; a cast before it would round what it reads
at full precision.
"""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.tap.hooks.outputs import leaves
from sonde.tap.hooks.session import Session
from sonde.tap.model.placement import Place, placement
from sonde.tap.model.vary import SizeChange, sized

TRIED_ROWS = 2
_log = logging.getLogger("sonde")


def place_of(module: nn.Module, batch: InputBatch) -> Place:
    """Return the device and number types of a model's inputs for a batch.

    The model is run only if some parameter has another type than an input. It runs on two rows:
    with inputs as they are, else with one input cast, else with all inputs cast.

    Parameters
    ----------
    module : Module
        Module that the batch is for.
    batch : InputBatch
        Batch whose number types are looked at.
    """
    device, first = placement(module)
    own = _float_types(batch)
    for types in _ways(own, list(_types_of(module))):
        place = Place(device, types)
        try:
            with Session(module) as session:
                session.run(*place.call(*sized(batch, SizeChange("none"), TRIED_ROWS, 0)))
        except Exception as error:  # whatever a model raises on a type that it does not take
            _log.debug("inputs are not taken as %s: %s", types or "they are", error)
        else:
            return place
    return Place(device, {} if first is None else dict.fromkeys(own, first))


def _ways(
    own: Mapping[str, torch.dtype], types: list[torch.dtype]
) -> Iterator[dict[str, torch.dtype]]:
    """Yield the casts to try; none if all parameters have the types of the inputs."""
    casts = [(name, t) for t in types for name, has in own.items() if t != has]
    if not casts:
        return
    yield {}
    if len(own) > 1:
        yield from ({name: t} for name, t in casts)
    yield from (dict.fromkeys(own, t) for t in types)


def _float_types(batch: InputBatch) -> dict[str, torch.dtype]:
    named = {str(i): x for i, x in enumerate(batch.args)} | batch.kwargs
    return {
        name: x.dtype
        for name, value in named.items()
        for x in leaves(value).values()
        if isinstance(x, Tensor) and x.is_floating_point()
    }


def _types_of(module: nn.Module) -> dict[torch.dtype, None]:
    return dict.fromkeys(p.dtype for p in module.parameters() if p.is_floating_point())
