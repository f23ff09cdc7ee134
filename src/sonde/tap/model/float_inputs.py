"""Floating-point inputs of a call that can be perturbed, with one row per example."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.tap.hooks.outputs import named_inputs

MASK, LABELS = "mask", frozenset({"labels", "label_ids"})


@dataclass(frozen=True, eq=False)
class FloatInputs:
    """The floating-point inputs of a call, by name.

    Parameters
    ----------
    varied : dict of str to Tensor
        Inputs with a row for each example; empty if the model reads tokens.
    held : tuple of str
        The other inputs but masks and labels: integers, and numbers without an axis of examples.
    """

    varied: dict[str, Tensor]
    held: tuple[str, ...]


def float_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], who: str
) -> FloatInputs:
    """Return the floating-point inputs of a call.

    Masks and labels are told by their names, and are no inputs unless nothing else is given.

    Raises
    ------
    InputError
        If the inputs have different numbers of rows.
    """
    every = told_apart(named_inputs(module, args, kwargs))
    varied = {name: x for name, x in every.items() if x.is_floating_point() and x.ndim}
    rows = {name: len(x) for name, x in varied.items()}
    if len(set(rows.values())) > 1:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in varied.items())
        raise InputError(
            f"{who}: expected a row of each floating-point input for each example, got "
            f"{shapes}. Repeat an input that all examples share, or name a single input: "
            f"site=':in.{next(iter(rows))}'."
        )
    return FloatInputs(varied, tuple(name for name in every if name not in varied))


def told_apart(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a call's inputs without masks and labels, or all inputs if there are no others."""
    beside = {name for name in named if MASK in name.lower() or name in LABELS}
    return {name: x for name, x in named.items() if name not in beside} or named
