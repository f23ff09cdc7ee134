"""The logits of a moved input, by forwards that no onlooker takes for those of a user."""

import contextvars
from typing import Any

from torch import Tensor, nn

from sonde.core.perturbation import Perturbation
from sonde.tap.model.perturb import perturbed_logits
from sonde.tap.watching.backward import require_gradients

_ASIDE = contextvars.ContextVar("sonde_aside", default=False)


def is_aside() -> bool:
    """Return whether this thread is in such a forward."""
    return _ASIDE.get()


def moved_logits(
    root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], step: Perturbation
) -> Tensor:
    """Return the logits after a step of the inputs of a call that is over."""
    require_gradients()
    token = _ASIDE.set(True)
    try:
        return perturbed_logits(root, args, kwargs, step)
    finally:
        _ASIDE.reset(token)
