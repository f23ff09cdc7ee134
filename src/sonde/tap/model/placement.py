"""Where a model takes its inputs, and in which type."""

from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[torch.device, torch.dtype | None]


def to_model(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments on the model's device, floats in the type of its weights."""
    return moved(placement(module), args, kwargs)


def moved(
    place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments at a place."""
    return tuple(_move(x, place) for x in args), {n: _move(x, place) for n, x in kwargs.items()}


def _move(x: Any, place: Place) -> Any:
    if not isinstance(x, Tensor):
        return x
    device, dtype = place
    wanted = dtype if x.is_floating_point() and dtype is not None else x.dtype
    return x.detach().to(device=device, dtype=wanted)


def placement(module: nn.Module) -> Place:
    """Return where a model takes its inputs, and the type of its first float parameter."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    for part in module.modules():
        hook = part.__dict__.get("_hf_hook")
        device = None if hook is None else hook.__dict__.get("execution_device")
        if device is not None:
            return torch.device(device if not isinstance(device, int) else f"cuda:{device}"), dtype
    found = next((t.device for t in (*module.parameters(), *module.buffers())), None)
    return (torch.device("cpu") if found is None else found), dtype
