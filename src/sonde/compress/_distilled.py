"""Helpers for methods that train a changed copy of a model on the model's answers."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Inputs
from sonde.core.repacking import in_own_form
from sonde.tap import place_of
from sonde.tap.hooks.holding import in_eval
from sonde.tap.rows.padding import right_padded

ROWS = 64
"""Examples of one batch."""


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares no tensor with it."""
    in_own_form(module)
    return copy.deepcopy(module)


def batches_of(
    module: nn.Module, inputs: Inputs, steps: int, draw: torch.Generator | None
) -> Iterator[tuple[Any, Any]]:
    """Yield the arguments of ``steps`` batches: in order, or from random starts with ``draw``."""
    n = len(inputs)
    if n < 2:
        raise InputError(f"expected two inputs or more to train on, got {n}.")
    for step in range(steps):
        start = step * ROWS % n
        if draw is not None:
            start = int(torch.randint(max(n - ROWS, 0) + 1, (), generator=draw))
        for batch in map(right_padded, inputs.batches(start, min(start + ROWS, n))):
            yield place_of(module, batch).call(batch.args, batch.kwargs)
            break


def answers_of(module: nn.Module, args: Any, kwargs: Any, training: bool = False) -> Tensor:
    """Return a model's logits as (answer, class), where each token of a text is an answer."""
    mode = nullcontext() if training else in_eval(module)
    with torch.set_grad_enabled(training), mode:
        output = module(*args, **kwargs)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output[0])
    return logits.flatten(0, -2)
