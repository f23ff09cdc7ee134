"""Columns of a table row that are far from their values in the calibration data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sonde.data.numbers import as_number
from sonde.run.fitting.fitted import Fitted

FAR, MOST = 3.0, 5


@dataclass(frozen=True)
class UnusualColumn:
    """A column whose value is far from the median.

    Parameters
    ----------
    name : str
    value : float
    z : float
        Distance from the median in robust standard deviations; infinite if the column was constant.
    """

    name: str
    value: float
    z: float


def scales_in(fitted: Fitted | None) -> Mapping[str, tuple[float, float]]:
    """Return the columns' medians and scales, from the calibration with the most rows."""
    every = () if fitted is None else fitted.header.get("calibrations", ())
    with_columns = [one for one in every if one.get("columns")]
    if not with_columns:
        return {}
    largest = max(with_columns, key=lambda one: one["n_examples"])
    return {name: (median, scale) for name, (median, scale) in largest["columns"].items()}


def unusual_columns(
    row: Mapping[str, Any], scales: Mapping[str, tuple[float, float]]
) -> tuple[UnusualColumn, ...]:
    """Return up to five columns at least three robust standard deviations away, furthest first.

    Examples
    --------
    >>> unusual_columns({"age": 190, "dose": 0.5}, {"age": (40.0, 15.0), "dose": (0.5, 0.1)})
    (UnusualColumn(name='age', value=190.0, z=10.0),)
    """
    unusual: list[UnusualColumn] = []
    for name, (median, scale) in scales.items():
        value = as_number(row.get(name))
        if value is None or value == median:
            continue
        z = (value - median) / scale if scale > 0 else math.copysign(math.inf, value - median)
        if abs(z) >= FAR:
            unusual.append(UnusualColumn(name, value, z))
    return tuple(sorted(unusual, key=lambda one: -abs(one.z))[:MOST])
