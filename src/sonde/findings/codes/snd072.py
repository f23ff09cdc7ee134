"""SND072: constants in a column that stand for missing values."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from sonde.findings.evidence.inputs.input_table import InputTable, read_table
from sonde.findings.evidence.inputs.placeholders import StandIn, stand_ins
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command
from sonde.findings.words.text import LONGEST, number, percent, plural, shortened


@final
@dataclass(frozen=True)
class SND072(Rule):
    """Fraction of rows in which a column holds a constant far outside its other values."""

    warning: float = 0.001

    title: ClassVar[str] = "Numbers that stand for missing values"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("sentinels",)
    breaks: ClassVar[Breaks] = "some answers"
    spoils_rows: ClassVar[bool] = True
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND085",), levels=SERIOUS),)
    why: ClassVar[str] = (
        "A model computes with -999 as with any number: such rows get answers that depend on a "
        "value that nobody measured, and the mean and standard deviation of the column are wrong "
        "for all rows."
    )
    fix: ClassVar[str] = (
        "Replace the constant by the median of the column's other values, computed on the "
        "training rows, and add a column that marks the rows where the value was missing."
    )
    how: ClassVar[str] = (
        "Over at most 20,000 rows (1,000 of wide tables), before any forward pass: a value that "
        "occurs in at least 3 rows, lies at an end of the column's range, and is further from "
        "the nearest other value than the range of all other values, each of which is rarer; up to "
        "3 such values at each end. A common code (-999, 9999, 32767 and similar) needs only 2 "
        "rows and half that distance; a negative code only needs a column without other negative "
        "values; in "
        "columns with fewer than 20 other values only common codes count, at 5 times the "
        "distance. -1 counts if all other numbers are larger and some of them are not whole. A "
        "warning from 0.1 % of the rows. A note: zeros below positive numbers that keep a "
        "quarter of their range away from zero, and -1 below whole numbers, each in at most "
        "half of the rows."
    )
    false_positives: ClassVar[str] = (
        "Columns with rare huge values of equal size, such as a fee of 1,000,000."
    )
    plant: ClassVar[str] = "-999 in a tenth of one column."
    twin: ClassVar[str] = "The same table."

    def check(self, evidence: Evidence) -> Check:
        """Search for repeated values far outside their column."""
        table = evidence.get(read_table)
        if not isinstance(table, InputTable):
            return self.not_applicable(table or "the inputs are not rows of a table")
        values, n = stand_ins(table), len(table.values)
        share = max((s.n for s in values), default=0) / n
        figure = Figure("stand_in_share", share, unit="share", threshold=self.warning, n_rows=n)
        if not values:
            return self.clear(figure)
        severe = any(s.sure and s.n >= self.warning * n for s in values)
        worst = values[0]
        rows = np.flatnonzero(_held(table, values))
        return self.raised_with(
            "warning" if severe else "note",
            _sentence(table, values, n),
            figure,
            examples=table.examples(rows),
            effect=min(1.0, 0.2 + len(rows) / n),
            fix="" if not table.are_named else _fix(table, worst),
            location=Location(columns=tuple(dict.fromkeys(table.names[s.column] for s in values))),
            next=rows_command(self.code),
        )


def _held(table: InputTable, found: list[StandIn]) -> np.ndarray:
    held = np.zeros(len(table.values), dtype=bool)
    for s in found:
        held |= table.values[:, s.column] == s.value
    return held


def _sentence(table: InputTable, found: list[StandIn], n: int) -> str:
    text = ""
    for i, s in enumerate(found):
        words = (
            f"{shortened(table.names[s.column], 30)} is {number(s.value, 6)} in {s.n:,} of "
            f"{plural(n, 'row')} ({percent(s.n / n)}); its other values lie from "
            f"{number(s.low, 3)} to {number(s.high, 3)}"
        )
        tail = f"; and {len(found) - i - 1} more." if len(found) - i - 1 else "."
        if text and len(text) + len(words) + len(tail) + 2 > LONGEST:
            return f"{text}; and {len(found) - i} more."
        text = f"{text}; {words}" if text else words
    return f"{text}."


def _fix(table: InputTable, worst: StandIn) -> str:
    name = repr(table.names[worst.column])
    return (
        f"frame[{name}] = frame[{name}].replace({worst.value:.6g}, nan), then fill it as in "
        "training, and add a column that marks where the value was missing."
    )
