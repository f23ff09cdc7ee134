"""Shared parts of the tests of attributions: the standard error of a mean, and conventions."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import widen_error
from sonde.explain.attribution import Attribution, Attributor, sites_named
from sonde.explain.baseline import Baseline
from sonde.explain.objective import FixedObjective
from sonde.tap.streams.site_function import SiteFunction


def standard_error(each: Float[Tensor, "part"]) -> float | None:
    """Return the standard error of the mean of independent values, or None for fewer than two.

    From fewer than 32 values it is widened by Student's t.
    """
    n = len(each)
    return widen_error(float(each.std()) / n**0.5, n) if n > 1 else None


def judged_by(
    test: Any, baseline: Baseline, function: SiteFunction, found: Attribution, fixed: FixedObjective
) -> dict[str, Any]:
    """Return the conventions of a test that replaces positions by a baseline."""
    return {
        "method": repr(test),
        "objective": fixed.objective.name,
        **fixed.output_named,
        **sites_named(function),
        "baseline": baseline.name_at(function),
        "masking": "replaced by the baseline",
        "attribution": found.conventions["method"],
    }


def require_method(who: str, explanation: Any) -> None:
    """Raise if the explanation is not a method that can be run again.

    Raises
    ------
    InputError
    """
    if not isinstance(explanation, Attributor):
        raise InputError(
            f"{who}.judge: expected the method itself, which is run again on other inputs, "
            f"got {type(explanation).__name__}. Pass the attributor, such as Saliency()."
        )


def require_attribution(who: str, explanation: Any) -> None:
    """Raise if the explanation is not the result of an attribution.

    Raises
    ------
    InputError
    """
    if not isinstance(explanation, Attribution):
        raise InputError(
            f"{who}.judge: expected an attribution, got {type(explanation).__name__}. Pass "
            "the attribution that explain(model, inputs) of the method returned."
        )
