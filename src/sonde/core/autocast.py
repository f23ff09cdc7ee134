"""Switches autocast off around sonde's own products: it is meant for the user's model alone."""

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

NOTHING = nullcontext()


def without_autocast(*devices: torch.device) -> AbstractContextManager[object]:
    """Return a context in which these devices compute in the tensors' own types, without autocast.

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
