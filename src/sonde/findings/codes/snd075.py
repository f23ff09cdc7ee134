"""SND075: impossible numbers in a column, and dates read as numbers."""

import re
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
from jaxtyping import Bool, Float

from sonde.findings.evidence.inputs.input_table import InputTable, read_table
from sonde.findings.evidence.inputs.placeholders import stand_ins
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, sentence
from sonde.findings.words.text import number, percent, plural, shortened

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
TAIL: Final = 0.02
"""Columns with more such rows that continue the others hold other quantities, such as days."""
DATES: Final = 20


@dataclass(frozen=True)
class OddColumn:
    """A column with impossible numbers, or a column of dates.

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
    """Return the words of a column's name in lower case, without a plural s.

    Examples
    --------
    >>> words_of("mean_ageYears"), words_of("Pages"), words_of("sepal length (cm)")
    (['mean', 'age', 'year'], ['page'], ['sepal', 'length', 'cm'])
    """
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return [p.lower()[:-1] if len(p) > 3 and p.lower().endswith("s") else p.lower() for p in parts]


def _impossible(table: InputTable, column: int) -> OddColumn | None:
    x, values = table.values[:, column], table.known(column)
    words = words_of(table.names[column])
    changes = {"change", "delta", "diff", "difference", "log", "error", "std", "z", "scaled", "net"}
    if not len(values) or changes & {*words}:
        return None
    for word in words:
        if word in LIMITS:
            low, high = LIMITS[word]
            beyond = (x < low) | (x > high)
            share = beyond.sum() / len(values)
            if 0 < share <= RARE and not (share > TAIL and _is_tail(x, beyond)):
                return OddColumn(column, word, low, high, beyond)
    return None


def _is_tail(x: Float[np.ndarray, "row"], beyond: Bool[np.ndarray, "row"]) -> bool:
    """Return whether the numbers beyond a limit continue the others without a gap.

    A gap is wider than the range of all numbers within the limits.
    """
    inside = x[~beyond & np.isfinite(x)]
    low, high = float(inside.min()), float(inside.max())
    above, below = x[beyond & (x > high)], x[beyond & (x < low)]
    gaps = [float(above.min()) - high] if len(above) else []
    gaps += [low - float(below.max())] if len(below) else []
    return max(gaps, default=0.0) <= high - low


def _dates(table: InputTable, column: int) -> OddColumn | None:
    """Return the column as dates if all its numbers are dates written as YYYYMMDD."""
    x, values = table.values[:, column], table.known(column)
    if len(np.unique(values)) < DATES or values.min() < 19000101 or values.max() > 21001231:
        return None
    is_date = _are_dates(values)
    if is_date.mean() < 0.99 or not (values % 1 == 0).all():
        return None
    return OddColumn(column, "", values.min(), values.max(), np.isfinite(x), "YYYYMMDD")


def _are_dates(x: Float[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
    month, day = x // 100 % 100, x % 100
    return (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)


@final
@dataclass(frozen=True)
class SND075(Rule):
    """Columns with numbers beyond the limits of their name, and columns of dates."""

    title: ClassVar[str] = "Impossible numbers, and dates read as numbers"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("sentinels",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "An age of 220 is a typing error that a model takes for a fact. 20240131 and 20240201 "
        "are one day apart, but a model that reads them as numbers sees a difference of 70."
    )
    fix: ClassVar[str] = (
        "Correct these numbers or mark them as missing. Give dates as days since a fixed day, or "
        "as year, month and weekday."
    )
    how: ClassVar[str] = (
        "Over at most 20,000 rows (1,000 of wide tables), before any forward pass. A column "
        "whose name has a word such as age, latitude, month, hour, humidity, pH, height, "
        "weight, price or count has limits; numbers beyond these limits are reported if at most "
        "10 % of the rows have such numbers (otherwise the column holds another quantity, such "
        "as a scaled one; constants of SND072 are left out). Nor may they continue the other "
        "numbers in more than 2 % of the rows: such an age is counted in days. A column of at "
        "least 20 different whole numbers that are all dates between 19000101 and 21001231 holds "
        "dates."
    )
    false_positives: ClassVar[str] = "A column whose name uses such a word in another sense."
    plant: ClassVar[str] = "Three ages of 220, and a column of dates such as 20240131."
    twin: ClassVar[str] = "The same table without these ages and dates."

    def check(self, evidence: Evidence) -> Check:
        """Compare every column with the limits of its name."""
        table = evidence.get(read_table)
        if not isinstance(table, InputTable):
            return self.not_applicable(table or "the inputs are not rows of a table")
        constants = {(s.column, s.value) for s in stand_ins(table)}
        odd_values = [c for c in odd_columns(table) if not _are_constants(table, c, constants)]
        n = len(table.values)
        impossible = [c for c in odd_values if not c.form]
        held = np.zeros(n, dtype=bool)
        for odd in impossible:
            held |= odd.rows
        share = float(held.mean())
        figure = Figure("impossible_share", share, unit="share", null=0.0, n_rows=n)
        if not odd_values:
            return self.clear(figure)
        return self.raised_with(
            "warning",
            sentence(*(_said(table, odd, n) for odd in odd_values)),
            figure,
            examples=table.examples(np.flatnonzero(held)),
            effect=min(1.0, 0.1 + share),
            next=rows_command(self.code) if impossible else None,
        )


def _are_constants(table: InputTable, odd: OddColumn, known: set[tuple[int, float]]) -> bool:
    """Return whether all impossible numbers of a column are constants that SND072 names."""
    values = np.unique(table.values[odd.rows, odd.column])
    return not odd.form and all((odd.column, float(v)) in known for v in values)


def _said(table: InputTable, odd: OddColumn, n: int) -> str:
    name, x = shortened(table.names[odd.column], 30), table.values[odd.rows, odd.column]
    if odd.form:
        return f"{name} holds dates ({odd.form}), which the model reads as numbers."
    count = len(x)
    reach = f"{number(odd.low)} to {number(odd.high)}" if np.isfinite(odd.high) else "0 or more"
    worst = x[np.argmax(np.maximum(odd.low - x, x - odd.high))]
    return (
        f"{name} is outside the possible range ({odd.word}: {reach}) in {count:,} of "
        f"{plural(n, 'row')} "
        f"({percent(count / n)}), such as {number(float(worst), 4)}."
    )
