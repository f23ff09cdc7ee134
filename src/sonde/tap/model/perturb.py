"""Logits of slightly perturbed inputs, from a forward, a backward and a forward pass.

Works on inputs of floating-point numbers: images, features, waveforms. Several inputs are moved
together, masks are not. The model runs in eval mode with frozen parameters, and is handed back as
it was.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.core.errors import InputError
from sonde.core.perturbation import Perturbation
from sonde.core.wording import plural
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import named_inputs, with_inputs
from sonde.tap.hooks.session import Session
from sonde.tap.model.float_inputs import float_inputs
from sonde.tap.model.probe import find_logits


def perturbed_logits(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: Perturbation,
    key: str | None = None,
) -> Float[Tensor, "example class"]:
    """Return a classifier's logits of the perturbed inputs; ``key`` is their output.

    The cross-entropy is a sum over examples, so an example's step does not depend on the others.

    Raises
    ------
    InputError
        If the model reads no floating-point numbers, or returns no logits of a classifier.
    """
    inputs = moved_inputs(module, args, kwargs)
    n, sizes = len(next(iter(inputs.values()))), _step_sizes(how.std, inputs)
    watched = {name: x.detach().clone().requires_grad_(True) for name, x in inputs.items()}
    with Session(module, with_grad=True) as session:
        with torch.enable_grad():
            given = {name: x.clone() for name, x in watched.items()}  # a model may write into them
        logits = _logits(session.run(*_with(module, args, kwargs, given)), n, key)
        with torch.enable_grad():
            wide = logits if logits.dtype == torch.float64 else logits.float()
            scaled = wide / how.temperature
            # Times T: the sign is the same, and small gradients do not underflow.
            loss = how.temperature * cross_entropy(scaled, scaled.argmax(1), reduction="sum")
            slopes = torch.autograd.grad(loss, [*watched.values()], allow_unused=True)
    if all(slope is None for slope in slopes):
        raise InputError("perturb: the logits do not depend on the inputs. Read another model.")
    moved = {
        name: x if slope is None else (x - how.eps * slope.sign() / sizes[name]).to(x.dtype)
        for (name, x), slope in zip(inputs.items(), slopes, strict=True)
    }
    with Session(module) as session:
        output = session.run(*_with(module, args, kwargs, moved))
        return _logits(output, n, key).detach().clone()


def moved_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Return a call's floating-point inputs by name; all of them are perturbed together.

    Raises
    ------
    InputError
        If there is none: token ids have no gradient.
    """
    varied = float_inputs(_root(module), args, kwargs, "perturb").varied
    if varied:
        return {name: x.detach() for name, x in varied.items()}
    kinds = sorted({str(v.dtype) for v in named_inputs(_root(module), args, kwargs).values()})
    raise InputError(
        "perturb: expected inputs of floating-point numbers (images, features), got "
        f"{', '.join(kinds) or 'none'}: token ids cannot be changed by a small step. Use a "
        "detector on the logits, such as MSP or Energy."
    )


def _root(module: nn.Module) -> nn.Module:
    return ModuleNames(module).modules[""]


def _step_sizes(
    std: float | tuple[float, ...], found: dict[str, Tensor]
) -> dict[str, float | Tensor]:
    if isinstance(std, tuple) and len(found) > 1:
        raise InputError(
            f"perturb: expected one std for all of {', '.join(found)}, got one for each of "
            f"{len(std)} channels. Give a number, or scale the inputs yourself."
        )
    return {name: _step_size(std, x) for name, x in found.items()}


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
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], new: dict[str, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of one forward pass: new inputs by name, copies of the others."""

    def given(name: str, x: Tensor) -> Tensor:
        return new[name] if name in new else x.detach().clone()

    return with_inputs(_root(module), args, kwargs, given)


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
