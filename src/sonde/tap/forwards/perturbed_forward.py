"""The logits of a moved input, computed by forwards that onlookers ignore."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.perturbation import Perturbation
from sonde.tap.forwards.backward import require_gradients
from sonde.tap.hooks.outputs import leaves
from sonde.tap.model.perturb import perturbed_logits

_PERTURBED = contextvars.ContextVar("sonde_perturbed_forward", default=False)


def in_perturbed_forward() -> bool:
    """Return whether this thread runs a forward of ``moved_logits``."""
    return _PERTURBED.get()


def moved_logits(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    step: Perturbation,
    output: Any,
    key: str | None = None,
) -> Tensor:
    """Return the logits after a step of the inputs of a call that is over and gave ``output``."""
    require_gradients()
    token = _PERTURBED.set(True)
    try:
        with _unwritten(output):
            return perturbed_logits(root, args, kwargs, step, key)
    finally:
        _PERTURBED.reset(token)


@contextlib.contextmanager
def _unwritten(output: Any) -> Iterator[None]:
    """Restore an output if the model writes the next output into the same memory."""
    kept = [(x, x._version, x.detach().clone()) for x in leaves(output).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for x, version, values in kept:
                if x._version != version:
                    x.copy_(values)
