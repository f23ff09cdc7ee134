"""SND075: numbers that cannot be what their column's name says, and dates read as numbers."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from sonde.findings._odd_numbers import OddColumn, odd_columns
from sonde.findings._places import rows_command, sentence
from sonde.findings._stand_ins import stand_ins
from sonde.findings._text import number, percent, plural, shortened
from sonde.findings.evidence import Evidence
from sonde.findings.input_table import InputTable
from sonde.findings.rule import Check, Figure, Rule, Theme


@final
@dataclass(frozen=True)
class SND075(Rule):
    """Columns with numbers beyond the limits of their name, and columns of dates."""

    title: ClassVar[str] = "Numbers that cannot be, and dates read as numbers"
    theme: ClassVar[Theme] = "data"
    why: ClassVar[str] = (
        "An age of 220 is an error of writing that a model takes for a fact; between 20240131 and "
        "20240201 lies one day, and a model that reads them as numbers sees 70."
    )
    fix: ClassVar[str] = (
        "Correct these numbers or mark them as missing. Give dates as days since a fixed day, or "
        "as year, month and weekday."
    )
    how: ClassVar[str] = (
        "Over at most 20,000 rows (1,000 of wide tables), before any forward pass. A column "
        "whose name has a word such as age, latitude, month, hour, humidity, pH, height, weight, "
        "price or count has limits; numbers beyond them in at most 10 % of the rows are named "
        "(in more rows, the column holds another quantity, such as a scaled one; constants of "
        "SND072 are left out). A column of 20 different whole numbers or more that are all dates "
        "between 19000101 and 21001231 holds dates."
    )
    false_positives: ClassVar[str] = "A column whose name uses such a word in another sense."
    plant: ClassVar[str] = "Three ages of 220, and a column of dates such as 20240131."
    twin: ClassVar[str] = "The same table without them."

    def check(self, evidence: Evidence) -> Check:
        """Compare every column with the limits of its name."""
        table = evidence.table
        if not isinstance(table, InputTable):
            return self.not_applicable(table or "the inputs are no rows of a table")
        constants = {(s.column, s.value) for s in stand_ins(table)}
        found = [c for c in odd_columns(table) if not _are_constants(table, c, constants)]
        n = len(table.values)
        impossible = [c for c in found if not c.form]
        held = np.zeros(n, dtype=bool)
        for odd in impossible:
            held |= odd.rows
        share = float(held.mean())
        figure = Figure("impossible_share", share, unit="share", null=0.0, n_rows=n)
        if not found:
            return self.clear(figure)
        return self.raised_with(
            "warning",
            sentence(*(_said(table, odd, n) for odd in found)),
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
        f"{name} is beyond the possible ({odd.word}: {reach}) in {count:,} of {plural(n, 'row')} "
        f"({percent(count / n)}), such as {number(float(worst), 4)}."
    )
