"""Numbers that cannot be what the name of their column says, and dates that are read as numbers."""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from sonde.findings.input_table import InputTable

LIMITS: Final[dict[str, tuple[float, float]]] = {
    "age": (0, 130), "latitude": (-90, 90), "lat": (-90, 90), "longitude": (-180, 360),
    "lon": (-180, 360), "lng": (-180, 360), "month": (0, 12), "hour": (0, 24),
    "minute": (0, 60), "second": (0, 60), "weekday": (0, 7), "day": (0, 366),
    "humidity": (0, 100), "ph": (0, 14), "probability": (0, 100), "height": (0, np.inf),
    "weight": (0, np.inf), "length": (0, np.inf), "width": (0, np.inf), "area": (0, np.inf),
    "volume": (0, np.inf), "count": (0, np.inf), "distance": (0, np.inf), "price": (0, np.inf),
    "duration": (0, np.inf), "population": (0, np.inf), "mass": (0, np.inf),
    "bmi": (0, np.inf), "kelvin": (0, np.inf),
}  # fmt: skip
"""The smallest and largest number that a column can hold whose name has this word."""
RARE: Final = 0.1
"""Columns with more such rows hold other quantities, such as scaled or centred ones."""
DATES: Final = 20


@dataclass(frozen=True)
class OddColumn:
    """A column with numbers that cannot be, or of dates.

    Parameters
    ----------
    column : int
    word : str
        The word of its name that sets the limits; empty for dates.
    low, high : float
        The limits.
    rows : Bool[ndarray, "row"]
        Rows beyond the limits, or all dates.
    form : str
        How the dates are written; empty for other numbers.
    """

    column: int
    word: str
    low: float
    high: float
    rows: Bool[np.ndarray, "row"]
    form: str = ""


def odd_columns(table: InputTable) -> list[OddColumn]:
    """Return the columns with impossible numbers, most rows first, then columns of dates."""
    n = table.values.shape[1]
    limits = [c for j in range(n) if table.are_named and (c := _impossible(table, j)) is not None]
    dates = [c for j in range(n) if (c := _dates(table, j)) is not None]
    return sorted(limits, key=lambda c: -int(c.rows.sum())) + dates


def words_of(name: str) -> list[str]:
    """Return the words of a column's name in lower case, without a plural's s.

    Examples
    --------
    >>> words_of("mean_ageYears"), words_of("Pages"), words_of("sepal length (cm)")
    (['mean', 'age', 'year'], ['page'], ['sepal', 'length', 'cm'])
    """
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return [p.lower()[:-1] if len(p) > 3 and p.lower().endswith("s") else p.lower() for p in parts]


def _impossible(table: InputTable, column: int) -> OddColumn | None:
    x, known = table.values[:, column], table.known(column)
    words = words_of(table.names[column])
    changes = {"change", "delta", "diff", "difference", "log", "error", "std", "z", "scaled", "net"}
    if not len(known) or changes & {*words}:
        return None
    for word in words:
        if word in LIMITS:
            low, high = LIMITS[word]
            beyond = (x < low) | (x > high)
            if 0 < beyond.sum() <= RARE * len(known):
                return OddColumn(column, word, low, high, beyond)
    return None


def _dates(table: InputTable, column: int) -> OddColumn | None:
    """Return a column whose numbers all are calendar dates written as YYYYMMDD."""
    x, known = table.values[:, column], table.known(column)
    if len(np.unique(known)) < DATES or known.min() < 19000101 or known.max() > 21001231:
        return None
    is_date = _are_dates(known)
    if is_date.mean() < 0.99 or not (known % 1 == 0).all():
        return None
    return OddColumn(column, "", known.min(), known.max(), np.isfinite(x), "YYYYMMDD")


def _are_dates(x: Float[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
    month, day = x // 100 % 100, x % 100
    return (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
