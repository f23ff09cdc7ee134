"""Placeholders for missing values: constants far outside the other values of a column."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from sonde.findings.evidence.inputs.input_table import InputTable

CODES: Final = frozenset((
    *(sign * (10**k - 1) for sign in (1, -1) for k in range(1, 10)),
    *(sign * (10**k - less) for sign in (1, -1) for k in range(2, 10) for less in (2, 3)),
    -1, -2**31, 2**31 - 1, -32768, 32767, 65535, 2**32 - 1,
))  # fmt: skip
"""Numbers by which programs and questionnaires write a missing value."""
MOST: Final = 3
MOST_AT_ONE: Final = 0.95
VALUES: Final = 20


@dataclass(frozen=True)
class StandIn:
    """A constant of a column that lies far from the column's other values.

    Parameters
    ----------
    column : int
    value : float
    n : int
        Rows that hold it.
    low, high : float
        The smallest and the largest of the other values.
    sure : bool
        Whether it lies further from the other values than these from each other.
    """

    column: int
    value: float
    n: int
    low: float
    high: float
    sure: bool


def stand_ins(table: InputTable) -> list[StandIn]:
    """Return the constants that stand for missing values, most frequent first."""
    values = [s for j in range(table.values.shape[1]) for s in _of_column(j, table.known(j))]
    return sorted(values, key=lambda s: (not s.sure, -s.n, s.column, s.value))


def _of_column(column: int, x: Float[np.ndarray, "row"]) -> Iterator[StandIn]:
    values, counts = np.unique(x, return_counts=True)
    for below, above in _cuts(len(values)):
        body = values[below : len(values) - above]
        span = float(body[-1] - body[0])
        away = [*range(below), *range(len(values) - above, len(values))]
        usual = int(counts[below : len(values) - above].max())
        if span > 0 and all(_is_far(values, counts, i, body, usual) for i in away):
            for i in away:
                ends = float(body[0]), float(body[-1])
                yield StandIn(column, float(values[i]), int(counts[i]), *ends, True)
            return
    yield from _near(column, values, counts)


def _cuts(n: int) -> list[tuple[int, int]]:
    """Return how many values to leave out at both ends, largest number first."""
    both = [(i, j) for i in range(MOST + 1) for j in range(MOST + 1)]
    return sorted((c for c in both if 0 < sum(c) <= n - 3), key=sum, reverse=True)


def _is_far(values: np.ndarray, counts: np.ndarray, i: int, body: np.ndarray, usual: int) -> bool:
    """Return whether a repeated value is too far from the others to be a measurement.

    Any value must be as far from the body as the body is wide and occur more often than each value
    of it, because all values of some columns repeat; a usual code may be half as far, and a
    negative code only below a body without negative values. In a column of few values only a usual
    code counts, five times as far.
    """
    value, span = float(values[i]), float(body[-1] - body[0])
    gap = max(float(body[0]) - value, value - float(body[-1]))
    is_code = value in CODES
    if counts[i] < (2 if is_code else 3) or counts[i] > MOST_AT_ONE * counts.sum():
        return False
    if len(body) < VALUES:
        return is_code and len(body) > 2 and gap >= 5 * span
    if is_code and value < -1 and body[0] >= 0:
        return True
    return gap >= 0.5 * span if is_code else gap >= span and int(counts[i]) > usual


def _near(column: int, values: np.ndarray, counts: np.ndarray) -> Iterator[StandIn]:
    """Yield a zero below distant positive values, or a -1 that is the only negative value.

    Between whole numbers -1 may be a count, so it is not sure.
    """
    if len(values) <= VALUES or counts[0] < 3 or counts[0] > counts.sum() / 2:
        return
    first, low, high = (float(values[i]) for i in (0, 1, -1))
    is_zero = first == 0 and low >= 0.25 * (high - low)
    if is_zero or (first == -1 and low >= 0 and high >= VALUES):
        is_measured = first == -1 and bool((values % 1 != 0).any())
        yield StandIn(column, first, int(counts[0]), low, high, is_measured)
