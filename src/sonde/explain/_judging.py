"""What the tests of attributions share: the error of a mean, and how a figure was made."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from sonde.explain.attribution import Attribution
from sonde.explain.baseline import Baseline
from sonde.explain.objective import Objective
from sonde.tap.reading.site_function import SiteFunction


def standard_error(each: Float[Tensor, "part"]) -> float | None:
    """Return the standard error of the mean of independent numbers; None for fewer than two."""
    n = len(each)
    return float(each.std()) / n**0.5 if n > 1 else None


def judged_by(
    test: Any, baseline: Baseline, function: SiteFunction, found: Attribution, objective: Objective
) -> dict[str, Any]:
    """Return the conventions of a test that replaces places by a baseline."""
    return {
        "method": repr(test),
        "objective": objective.name,
        "site": function.site,
        "baseline": str(baseline),
        "masking": "replaced by the baseline",
        "attribution": found.conventions["method"],
    }
