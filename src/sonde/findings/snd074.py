"""SND074: one column of a table alone gives the label."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from sonde.findings._places import read_command, sentence
from sonde.findings._telling_column import TellingColumn, telling_column
from sonde.findings._text import number, percent, plural, shortened
from sonde.findings.evidence import Evidence
from sonde.findings.input_table import InputTable
from sonde.findings.rule import Check, Figure, Rule, Theme
from sonde.stats.intervals import wilson


@final
@dataclass(frozen=True)
class SND074(Rule):
    """Error of the label by one column alone, against all other columns and against the model.

    Parameters
    ----------
    ratio : float, default=0.25
        Largest error with the column alone, as a share of the error without any column.
    lead : float, default=0.5
        Largest error with the column alone, as a share of the error with all the other columns.
    level : float, default=0.001
    """

    ratio: float = 0.25
    lead: float = 0.5
    level: float = 0.01

    title: ClassVar[str] = "One column alone gives the label"
    theme: ClassVar[Theme] = "data"
    why: ClassVar[str] = (
        "A column that was filled in after the label was known (a date of discharge, a code of the "
        "diagnosis) makes the scores on this data high, and it is not there when the model is used."
    )
    fix: ClassVar[str] = (
        "Ask where the column comes from. If it is known only after the label, train without it."
    )
    how: ClassVar[str] = (
        "Before any forward pass, on at most 4,000 rows (1,000 of wide tables): every column "
        "alone predicts the label by the commonest label (the mean, for a label of numbers) in "
        "32 bins, or in each of at most 64 values, fitted on half of the groups; the best column "
        "is judged on the other half. Raised where its error is at most a quarter of the error "
        "without any column, at most half of the error with all other columns (the better of a "
        "linear predictor and 50 random trees, columns that correlate above 0.99 with it left "
        "out; p below 0.01, sign test over rows), and no larger than the model's own error by "
        "more than 1 point. A note where the other columns give the label nearly as well; if the "
        "model's answers are not known, where they do not give it better."
    )
    false_positives: ClassVar[str] = "A label that is defined by the column."
    plant: ClassVar[str] = "A column that is the label's number with a little noise."
    twin: ClassVar[str] = "The same table without that column."

    def check(self, evidence: Evidence) -> Check:
        """Judge the best single column on rows that did not choose it."""
        table = evidence.table
        if not isinstance(table, InputTable):
            return self.not_applicable(table or "the inputs are no rows of a table")
        found = telling_column(evidence, table, self.ratio)
        if isinstance(found, str):
            return self.not_applicable(found)
        low, high = (None, None)
        value = 1.0 - found.error
        if not found.is_number:
            low, high = wilson(round(value * found.n), found.n)
        figure = Figure(
            "r2_of_one_column" if found.is_number else "accuracy_of_one_column", value, low, high,
            null=1.0 - found.usual, p=found.p, n_rows=found.n, n_groups=found.n,
        )  # fmt: skip
        if np.isnan(found.others) or found.error > self.ratio * found.usual:
            return self.clear(figure)
        leads = found.error <= self.lead * found.others and found.p < self.level
        if not leads and np.isnan(found.model) and found.error > found.others:
            return self.clear(figure, "all other columns together give it better")
        return self.raised_with(
            "warning" if leads else "note",
            _sentence(table, found),
            figure,
            effect=min(1.0, max(0.0, found.others - found.error) / max(found.usual, 1e-9)),
            next=read_command(evidence.sites[0].schema.key) if evidence.sites else None,
        )


def _sentence(table: InputTable, found: TellingColumn) -> str:
    name = shortened(table.names[found.column], 40)
    n = plural(found.n, "row")
    if found.is_number:
        others, own = number(1 - found.others), number(1 - found.error)
        text = f"{name} alone gives the label with R^2 {own} on {n} that did not choose it, all "
        text += f"other columns together with {others}"
        more = "" if np.isnan(found.model) else f", the model with {number(1 - found.model)}"
        return sentence(f"{text}{more}.")
    text = (
        f"{name} alone gives the label in {percent(1 - found.error, 3)} of {n} that did not choose "
        f"it, all other columns together in {percent(1 - found.others, 3)}"
    )
    if not np.isnan(found.model):
        text += f", the model in {percent(1 - found.model, 3)}"
    return sentence(f"{text} (the commonest label: {percent(1 - found.usual)}).")
