"""Changes as context managers that a judgement opens, with random changes of equal size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from sonde.core.edit import Edit
from sonde.core.inputs import Model
from sonde.edit.random_direction import RandomDirection
from sonde.run.changing.judge import N_CONTROLS, Act
from sonde.tap import editing
from sonde.weights import RewritePlan
from sonde.weights.control import random_plan


def edit_act(model: Model, edit: Edit, sites: Sequence[str], **how: Any) -> Act:
    """Return the act of an edit of activations; ``how`` are the options of ``sonde.editing``."""

    @contextmanager
    def act() -> Iterator[nn.Module]:
        with editing(model, edit, sites, **{"here": True, **how}):
            yield model.module

    return act


def edit_controls(
    model: Model, edit: Edit, sites: Sequence[str], n: int = N_CONTROLS, **how: Any
) -> list[Act]:
    """Return ``n`` acts that move states as far as ``edit`` does, in random directions."""
    return [edit_act(model, RandomDirection(edit, seed), sites, **how) for seed in range(n)]


def plan_act(model: Model, plan: RewritePlan) -> Act:
    """Return the evaluation plan of a change of weights, folded once."""
    return module_act(plan.fold(model))


def module_act(module: nn.Module) -> Act:
    """Return the act that runs a changed copy of the model."""

    @contextmanager
    def act() -> Iterator[nn.Module]:
        yield module

    return act


def plan_controls(model: Model, plan: RewritePlan, n: int = N_CONTROLS) -> list[Act]:
    """Return ``n`` acts with random changes of equal norm, each folded when it is opened."""

    def one(seed: int) -> Act:
        @contextmanager
        def act() -> Iterator[nn.Module]:
            yield random_plan(model, plan, seed).fold(model)

        return act

    return [one(seed) for seed in range(n)]
