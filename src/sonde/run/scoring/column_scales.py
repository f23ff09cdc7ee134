"""Medians and robust standard deviations of the columns of a table."""

from typing import Any

import numpy as np

from sonde.core.stream import Stream
from sonde.data.inputs import ItemInputs
from sonde.data.numbers import as_number
from sonde.tap import LiveStream

MOST_ROWS = 2_000
TO_STANDARD = 1.4826
"""From the median distance to the median to the standard deviation of a normal column."""


def column_scales(stream: Stream) -> dict[str, list[float]]:
    """Return the median and robust standard deviation of each numeric column of a table.

    They are of at most 2,000 rows, spread evenly over the data; empty if the data are no table. If
    more than half of the values of a column are equal, its scale is that of all values, or 0.
    """
    inputs = stream.inputs if isinstance(stream, LiveStream) else None
    if not isinstance(inputs, ItemInputs) or inputs.encoder.kind != "numbers":
        return {}
    n = len(stream)
    chosen = np.unique(np.linspace(0, n - 1, min(n, MOST_ROWS)).round().astype(int))
    columns: dict[str, list[Any]] = inputs.key_columns(chosen.tolist())
    scales: dict[str, list[float]] = {}
    for name in inputs.encoder.identity()["inputs"]:
        numbers = [x for v in columns.get(name, ()) if (x := as_number(v)) is not None]
        values = np.array(numbers, dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            median = float(np.median(values))
            scale = TO_STANDARD * float(np.median(np.abs(values - median)))
            scales[name] = [median, scale or float(values.std())]
    return scales
