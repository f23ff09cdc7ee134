"""The input tensors of a model, each with its name and with what its numbers mean.

Wherever a method looks at or changes inputs one by one, it enumerates them here: a model may take a
table beside the codes of a category, two texts, or a graph with a mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.core.token_masks import NAMES
from sonde.tap.hooks.outputs import named_inputs, with_inputs

Kind = Literal["numbers", "codes", "mask"]


@dataclass(frozen=True, eq=False)
class InputTensor:
    """One input tensor of a batch.

    Parameters
    ----------
    name : str
        Name of the argument of ``forward``; of a tensor inside a tuple or a mapping also its key.
    kind : {"numbers", "codes", "mask"}
        Floating-point numbers; whole numbers such as tokens and categories; or a mask.
    x : Tensor
        The values, one example on each index of the first axis.
    """

    name: str
    kind: Kind
    x: Tensor


def input_tensors(module: nn.Module, batch: InputBatch) -> dict[str, InputTensor]:
    """Return the input tensors that have an entry for each example, by name."""
    named = named_inputs(module, batch.args, batch.kwargs)
    return {
        name: InputTensor(name, _kind(name, x), x)
        for name, x in named.items()
        if x.ndim and len(x) == len(batch) and name not in batch.packed
    }


def _kind(name: str, x: Tensor) -> Kind:
    if name in NAMES or "mask" in name.lower() or x.dtype == torch.bool:
        return "mask"
    return "numbers" if x.is_floating_point() else "codes"


Tensors = Mapping[str, Tensor]


def with_tensors(
    module: nn.Module, batch: InputBatch, change: Callable[[Tensors], Tensors]
) -> InputBatch:
    """Return the batch with other values of some input tensors, computed from all of them."""
    new = change({name: one.x for name, one in input_tensors(module, batch).items()})
    args, kwargs = with_inputs(module, batch.args, batch.kwargs, lambda name, x: new.get(name, x))
    return replace(batch, args=args, kwargs=kwargs)
