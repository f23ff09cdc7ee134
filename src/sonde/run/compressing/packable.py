"""Plans of packed weights: none that change weights without making them smaller."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sonde.compress import LayerGrams, correct_biases
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.weights import RewritePlan
from sonde.weights.change import Packed


def packed_plan(
    rule: Any, model: Model, given: Mapping[str, Any], means: Inputs | LayerGrams | None = None
) -> RewritePlan:
    """Return a method's plan without layers that no packed form holds.

    Parameters
    ----------
    rule : Rewrite
    model : Model
    given : mapping
        What the method reads, by name.
    means : Inputs or LayerGrams, optional
        Examples, or the moments of layers' inputs, with which biases are corrected; by default
        biases are unchanged.

    Raises
    ------
    InputError
        If nothing is left to pack, or biases are to be corrected and the plan has none to correct.
    """
    plan = without_unpacked(rule.plan(model, given))
    return plan if means is None else correct_biases(plan, model, means)


def without_unpacked(plan: RewritePlan) -> RewritePlan:
    """Return the plan without layers that no packed form holds.

    A grid, a product of thin matrices or a code book packs linear layers alone. In a convolution
    it would round the weights and save no byte.

    Raises
    ------
    InputError
        If nothing is left to pack.
    """
    changes = plan.changes.items()
    left = {n for n, change in changes if isinstance(change, Packed) and n not in plan.reshaped}
    kept = {name: change for name, change in changes if name not in left}
    if left and not (kept or plan.blocks):
        first = min(left).removesuffix(".weight")
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise InputError(
            f"sonde compress: {first}{more} would be rounded without getting smaller: only "
            "linear layers, embeddings and stacked experts can be packed in this way. --to 50% "
            "packs convolutions."
        )
    ours = {name: value for name, value in plan.made_for.items() if name not in left}
    ties = {name: value for name, value in plan.ties.items() if name not in left}
    return replace(plan, changes=kept, made_for=ours, ties=ties)
