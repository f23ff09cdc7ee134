"""Switches autocast off for sonde's own products, since it is meant for the user's model."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError

NOTHING = nullcontext()
NARROW = (torch.float16, torch.bfloat16)
P = ParamSpec("P")
T = TypeVar("T")


def without_autocast(*devices: torch.device) -> AbstractContextManager[object]:
    """Return a context in which these devices compute without autocast.

    Examples
    --------
    >>> x = torch.ones(2, 2)
    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(x.device):
    ...     (x @ x).dtype
    torch.float32
    """
    kinds = {device.type for device in devices if is_autocast(device)}
    if not kinds:
        return NOTHING
    with ExitStack() as stack:
        for kind in sorted(kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        return stack.pop_all()


def is_autocast(device: torch.device) -> bool:
    """Return whether autocast is on for a device."""
    if device.type == "cpu":
        return torch.is_autocast_enabled("cpu")
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def in_float32(method: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method of a loss to compute in at least float32, even under autocast.

    Half types keep three digits or less: sums of kernels, determinants and exponentials lose them
    all. Gradients come back in the type of the inputs.

    Raises
    ------
    InputError
        If the module itself holds weights in a half type.
    """

    @wraps(method)
    def computed(*args: P.args, **kwargs: P.kwargs) -> T:
        if isinstance(args[0], nn.Module) and (narrow := narrow_weight(args[0])) is not None:
            raise InputError(
                f"{type(args[0]).__name__}: expected its own weights in float32, got {narrow}. "
                "Call loss.float(); the rows may have any type."
            )
        given: tuple[Any, dict[str, Any]] = widened((args, kwargs))
        with without_autocast(*devices_of(given)):
            return method(*given[0], **given[1])

    return computed


def widened(value: Any) -> Any:
    """Return half-precision tensors in float32, also inside lists; leave other values unchanged."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in NARROW else value
    if type(value) is list:
        return [widened(x) for x in cast("list[Any]", value)]
    if type(value) is tuple:
        return tuple(widened(x) for x in cast("tuple[Any, ...]", value))
    if type(value) is dict:
        return {name: widened(x) for name, x in cast("dict[Any, Any]", value).items()}
    return value


def narrow_weight(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first half-precision parameter, or None."""
    return next((p.dtype for p in module.parameters() if p.dtype in NARROW), None)


def devices_of(value: Any) -> set[torch.device]:
    """Return the devices of all tensors in a value."""
    return {x.device for x in _tensors(value)}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(cast("dict[Any, Any]", value).values()))
    elif isinstance(value, list | tuple):
        for part in cast("list[Any]", value):
            yield from _tensors(part)
