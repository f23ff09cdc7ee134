"""Copies of inputs on the model's device, which the model may change in place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from sonde.tap.hooks.outputs import leaves, replaced
from sonde.tap.hooks.sharding import computing_type


@dataclass(frozen=True)
class Place:
    """Device of a model's inputs, and the number types of the inputs that are cast.

    Parameters
    ----------
    device : torch.device
    types : mapping of str to dtype
        By position or keyword of the argument.
    """

    device: torch.device
    types: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of one forward pass, whose tensors are copies.

        Models work in place, and their inputs are read again: by a second forward, by the columns,
        by a later pass over the same data.
        """
        moved = tuple(self._copied(x, str(i)) for i, x in enumerate(args))
        return moved, {name: self._copied(x, name) for name, x in kwargs.items()}

    def _copied(self, value: Any, name: str) -> Any:
        for x in leaves(value).values():
            dtype = self.types.get(name, x.dtype) if x.is_floating_point() else x.dtype
            value = replaced(value, x, x.to(self.device, dtype, copy=True))
        return value


def placement(module: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Return the device of a model's inputs, and the type of its first float parameter.

    Parameters
    ----------
    module : Module
        Module whose device is asked for.
    """
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    dtype = computing_type(module) or own
    for part in module.modules():
        hook = part.__dict__.get("_hf_hook")
        device = None if hook is None else hook.__dict__.get("execution_device")
        if device is not None:
            return torch.device(device if not isinstance(device, int) else f"cuda:{device}"), dtype
    first_device = next((t.device for t in chain(module.parameters(), module.buffers())), None)
    return (torch.device("cpu") if first_device is None else first_device), dtype
