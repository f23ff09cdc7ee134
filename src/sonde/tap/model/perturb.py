"""The logits of inputs that were moved a small step: a forward, a backward, and one more forward.

Works on inputs of floating-point numbers: images, features, waveforms. The model runs in eval mode
with frozen parameters, and is handed back as it was.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.core.errors import InputError
from sonde.core.perturbation import Perturbation
from sonde.core.wording import plural
from sonde.tap.hooks.outputs import leaves, replaced
from sonde.tap.hooks.session import Session
from sonde.tap.model.probe import find_logits


def perturbed_logits(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: Perturbation,
    key: str | None = None,
) -> Float[Tensor, "example class"]:
    """Return a classifier's logits of the inputs after the step; ``key`` is their output.

    The cross-entropy is a sum over examples, so an example's step does not depend on the others.

    Raises
    ------
    InputError
        If the model reads no floating-point numbers, or returns no logits of a classifier.
    """
    found = float_input(args, kwargs)
    std = _step_size(how.std, found)
    watched = found.detach().clone().requires_grad_(True)
    with Session(module, with_grad=True) as session:
        with torch.enable_grad():
            given = watched.clone()  # a model may change it in place, as it may not a leaf
        logits = _logits(session.run(*_with(args, kwargs, found, given)), len(found), key)
        with torch.enable_grad():
            wide = logits if logits.dtype == torch.float64 else logits.float()
            scaled = wide / how.temperature
            # Times T: the sign is the same, and small gradients do not underflow.
            loss = how.temperature * cross_entropy(scaled, scaled.argmax(1), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, watched, allow_unused=True)
    if gradient is None:
        raise InputError("perturb: the logits do not depend on the inputs. Read another model.")
    moved = found.detach() - how.eps * gradient.sign() / std
    with Session(module) as session:
        output = session.run(*_with(args, kwargs, found, moved.to(found.dtype)))
        return _logits(output, len(found), key).detach().clone()


def float_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the first floating-point tensor that a model is called with.

    Raises
    ------
    InputError
        If there is none: token ids have no gradient.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    kinds = sorted({str(v.dtype) for v in (*args, *kwargs.values()) if isinstance(v, Tensor)})
    raise InputError(
        "perturb: expected inputs of floating-point numbers (images, features), got "
        f"{', '.join(kinds) or 'none'}: token ids cannot be moved a small step. "
        "Use a detector on the logits, such as MSP or Energy."
    )


def _step_size(std: float | tuple[float, ...], x: Tensor) -> float | Tensor:
    if not isinstance(std, tuple):
        return std
    if x.ndim < 2 or x.shape[1] != len(std):
        raise InputError(
            f"perturb: expected std for each of {x.shape[1] if x.ndim > 1 else 0} channels (axis "
            f"1), got {len(std)} for inputs of shape {tuple(x.shape)}."
        )
    return torch.tensor(std, dtype=x.dtype, device=x.device).view(1, -1, *[1] * (x.ndim - 2))


def _with(
    args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of one forward: ``new`` in place of ``old``, copies of all others."""

    def given(value: Any) -> Any:
        for x in leaves(value).values():
            value = replaced(value, x, new if x is old else x.detach().clone())
        return value

    return tuple(map(given, args)), {name: given(value) for name, value in kwargs.items()}


def _logits(output: Any, n: int, key: str | None) -> Tensor:
    logits = find_logits(output, key)
    if logits is None or logits.ndim != 2 or len(logits) != n:
        shape = "none" if logits is None else f"shape {tuple(logits.shape)}"
        raise InputError(
            f"perturb: expected a classifier's logits, one row for each of "
            f"{plural(n, 'example')}, got "
            f"{shape}. Read a classifier of images or features."
        )
    return logits
