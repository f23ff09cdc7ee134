"""Table of fitted results as JSON values: a row for each method and site."""

import math
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from sonde.core.errors import CalibrationError
from sonde.core.result import Result, Scorer
from sonde.stats import CalibratedScorer

ALPHA: Final = 0.05
EPSILON: Final = 2.0**-23


def fitted_rows(results: Mapping[tuple[str, str], Result]) -> list[dict[str, Any]]:
    """Return an entry of JSON values for each result.

    ``value`` and ``se`` belong to a measure with a single number (``n_values`` counts the numbers).
    ``null`` is its expectation if there is nothing to see; ``low`` and ``high`` are the ends of its
    range, None if infinite. ``n_held`` and ``threshold``
    belong to a calibrated detector: scores above ``threshold`` are alarms at a false-alarm rate of
    5 %; the threshold is None if too few held-out rows.
    """
    return [
        {
            "method": method,
            "site": site,
            "value": _number(result.value),
            "se": _number(result.se),
            "null": _number(result.null),
            "low": _number(result.range[0]),
            "high": _number(result.range[1]),
            "n_values": result.value.numel() if isinstance(result.value, Tensor) else 1,
            "unit": result.unit,
            "direction": result.direction,
            "at": _places(result),
            "n": result.n,
            "n_classes": _n_classes(result),
            "positive": result.conventions.get("positive"),
            "flags": list(result.flags),
            "detector": isinstance(result, Scorer),
            **_calibration(result),
        }
        for (method, site), result in results.items()
    ]


def is_rounding(
    se: float | None, value: float | None, low: float | None, high: float | None
) -> bool:
    """Return whether a standard error lies below the rounding of its value in float32.

    Examples
    --------
    >>> is_rounding(4.8e-9, 0.98, 0.0, 1.0), is_rounding(4.8e-9, 1e-8, None, None)
    (True, False)
    """
    if se is None or value is None:
        return False
    width = high - low if high is not None and low is not None else 0.0
    return 0 < se < EPSILON * max(abs(value), width)


def _places(result: Result) -> list[dict[str, Any]]:
    """Return the columns of a measure's table other than its numbers, e.g. unit and position."""
    if isinstance(result, Scorer) or (isinstance(result.value, Tensor) and result.value.ndim):
        return []
    table = result.table()
    names = [name for name in table.column_names if name not in ("value", "se", "null")]
    return table.select(names).to_pylist() if names else []


def _n_classes(result: Result) -> int | None:
    """Return the classes of a detector that keeps a mean for each; 0 if no row had a label."""
    scorer = result.scorer if isinstance(result, CalibratedScorer) else result
    labels = getattr(scorer, "labels", None)
    return int((labels >= 0).sum()) if isinstance(labels, Tensor) else None


def _calibration(result: Result) -> dict[str, Any]:
    if not isinstance(result, CalibratedScorer):
        return {"n_held": None, "threshold": None}
    try:
        threshold: float | None = result.calibration.threshold(ALPHA)
    except CalibrationError:
        threshold = None
    return {"n_held": result.calibration.n, "threshold": _number(threshold)}


def _number(value: float | Tensor | None) -> float | None:
    if value is None or (isinstance(value, Tensor) and value.numel() != 1):
        return None
    return float(value) if math.isfinite(float(value)) else None
