"""SND073: columns of a table that are constant, copies of another column, or often missing."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._idle_columns import IdleColumns, idle_columns
from sonde.findings._places import read_command, sentence
from sonde.findings._text import listed, percent, plural, shortened
from sonde.findings.evidence import Evidence
from sonde.findings.input_table import InputTable
from sonde.findings.rule import Check, Figure, Rule, Theme


@final
@dataclass(frozen=True)
class SND073(Rule):
    """Columns that are constant or copies, and the largest share of missing numbers in a column."""

    note: float = 0.05
    warning: float = 0.2

    title: ClassVar[str] = "Columns that carry nothing new"
    theme: ClassVar[Theme] = "data"
    why: ClassVar[str] = (
        "A constant column teaches nothing and moves every answer once it changes; a copy counts "
        "twice in every distance; rows without a number are left out of every figure."
    )
    fix: ClassVar[str] = (
        "Leave these columns out (--ignore-columns), or look where their numbers were lost."
    )
    how: ClassVar[str] = (
        "Over at most 20,000 rows (1,000 of wide tables), before any forward pass: columns of "
        "one value; columns that an earlier one gives up to a factor and a constant (equal in "
        "every row if they have two values), leaving at most 1e-9 of their variance; and columns "
        "that have no number in 5 % of the rows, rows that were left out counted. A note; a "
        "warning if 20 % are missing."
    )
    false_positives: ClassVar[str] = "Pixels at the edge of pictures, which are always empty."
    plant: ClassVar[str] = "A column of one value, and a column in Fahrenheit beside Celsius."
    twin: ClassVar[str] = "The same table without them."

    def check(self, evidence: Evidence) -> Check:
        """Compare every column with the others."""
        table = evidence.table
        if not isinstance(table, InputTable):
            return self.not_applicable(table or "the inputs are no rows of a table")
        found, n = idle_columns(table, self.note), len(table.names)
        share = found.missing[0][1] if found.missing else 0.0
        count = len({*found.constant, *(c[0] for c in found.copies)})
        figure = Figure("idle_columns", float(count), unit="columns", n_rows=len(table.values))
        if share >= self.note:
            figure = Figure("missing_share", share, unit="share", threshold=self.note,
                            n_rows=table.n_read)  # fmt: skip
        if not count and share < self.note:
            return self.clear(figure)
        return self.raised_with(
            "warning" if share >= self.warning else "note",
            sentence(*_texts(table, found)),
            figure,
            effect=max(count / n, share),
            common=share < self.note and not found.copies,
            next=read_command(evidence.sites[0].schema.key) if evidence.sites else None,
        )


def _texts(table: InputTable, found: IdleColumns) -> list[str]:
    names = [shortened(name, 24) for name in table.names]
    texts: list[str] = []
    if found.missing:
        said = [f"{names[j]} in {percent(share)}" for j, share in found.missing]
        texts.append(f"Numbers are missing: {listed(said, 2)} of {plural(table.n_read, 'row')}.")
    if found.copies:
        said = [
            f"{names[b]} {'equals' if equal else 'is a multiple (plus a constant) of'} {names[a]}"
            for b, a, equal in found.copies
        ]
        texts.append(f"{listed(said, 2)}.")
    if found.constant:
        verb = "has" if len(found.constant) == 1 else "have"
        of = plural(len(table.values), "row")
        texts.append(f"{listed([names[j] for j in found.constant])} {verb} one value in {of}.")
    return texts
