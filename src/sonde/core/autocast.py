"""Our own products in their own type: autocast is about the user's model, not about its figures."""

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

NOTHING = nullcontext()


def without_autocast(*devices: torch.device) -> AbstractContextManager[object]:
    """Compute on these devices in the types of the tensors, inside autocast too.

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
    """Return whether products on a device are being made in another type than their factors."""
    if device.type == "cpu":
        return torch.is_autocast_enabled("cpu")
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
