"""SND049: something that changes from one row of the file on."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._file_order import Change, changes_in_file
from sonde.findings._places import sentence
from sonde.findings._text import number, percent, plural, shortened
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Rule, Theme


@final
@dataclass(frozen=True)
class SND049(Rule):
    """Difference of errors, stuck or missing values before and after one row of the file."""

    difference: float = 0.1
    level: float = 0.001

    title: ClassVar[str] = "Something changes from one row of the file on"
    theme: ClassVar[Theme] = "data"
    why: ClassVar[str] = (
        "Labels that slip by a row, a sensor that stops or a camera that grows dim spoil the rest "
        "of a file and leave its beginning as it was."
    )
    fix: ClassVar[str] = "Compare the rows before and after the row named, and repair the rest."
    how: ClassVar[str] = (
        "Rows in the order of the file: errors of the model (numbers: off by a third of the "
        "targets' spread), and for each column of numbers that the model is given whether a value "
        "equals the one before, equals a frequent value, or is missing; brightness, contrast and "
        "sharpness of pictures. On every other row the place is chosen where the two means differ "
        "most; the other rows are tested there: Fisher's exact test (the null of all orders), for "
        "pictures Mann and Whitney's, times the number of series, below 0.001. "
        "Raised where shares differ by 0.1; a column is stuck where values repeat on 90 % of one "
        "part and 30 % of the other. Labels slip where answers fit labels up to three rows away. "
        "Files that are sorted by class are compared within classes."
    )
    false_positives: ClassVar[str] = "Files that are put together of parts, on purpose."
    plant: ClassVar[str] = "Labels of the second half are moved by one row; a column sticks."
    twin: ClassVar[str] = "The same rows before the change."

    def check(self, evidence: Evidence) -> Check:
        """Look for a change in every series."""
        found = changes_in_file(evidence)
        if isinstance(found, str):
            return self.not_applicable(found)
        if not found:
            return self.clear(Figure("difference", 0.0, unit="share", threshold=self.difference))
        first, n = found[0], evidence.data.n
        figure = Figure(
            "difference", abs(first.after - first.before), unit="share", null=0.0,
            threshold=self.difference if first.kind != "level" else None, p=first.p,
            n_rows=n,
        )  # fmt: skip
        said = [_said(change, n) for change in found[:4]]
        text = f"{'; '.join(said)}."
        return self.raised_with(
            "note" if first.kind == "level" else "warning",
            sentence(text[:1].upper() + text[1:]),
            figure,
            examples=tuple(dict.fromkeys(change.row for change in found)),
            effect=min(1.0, abs(first.after - first.before)) if first.kind != "level" else 0.3,
            trial=next((c.trial for c in found if c.trial is not None), None),
            fix=_fix(first) or next(filter(None, map(_fix, found)), ""),
        )


def _said(change: Change, n: int) -> str:
    at, name = f"from row {change.row + 1:,} of {n:,} on", shortened(change.name, 30)
    if change.kind == "level":
        side = "falls" if change.after < change.before else "rises"
        return f"{at} {name} {side}: median {number(change.after)}, before {number(change.before)}"
    before, after = percent(change.before), percent(change.after)
    if change.slip:
        way = "earlier" if change.slip < 0 else "later"
        return (
            f"{at} labels slip: answers fit the label {plural(abs(change.slip), 'row')} {way} "
            f"({percent(change.mended)}, their own label {percent(1 - change.after)}; before "
            f"{percent(1 - change.before)})"
        )
    if change.kind == "error":
        return f"{at} the model is wrong on {after} of rows, before on {before}"
    if change.kind == "stuck":
        return f"{at} {name} repeats its last value on {after} of rows, before on {before}"
    if change.kind == "missing":
        return f"{at} {name} is missing in {after} of rows, before in {before}"
    return f"{at} {name} is {number(change.value, 6)} in {after} of rows, before in {before}"


def _fix(change: Change) -> str:
    """Return the line that undoes the change, if there is a line."""
    row, name = change.row, repr(change.name)
    if change.slip:
        return (
            f"rest = frame.index[{row}:]; frame.loc[rest, 'label'] = frame['label'].shift("
            f"{-change.slip})[rest] (the column of labels): right on {percent(change.mended)} from "
            f"there on instead of {percent(1 - change.after)}."
        )
    if change.kind in ("stuck", "value"):
        which = f" where it is {number(change.value, 6)}" if change.kind == "value" else ""
        return f"Take {name} as missing from row {row + 1:,} on{which}, or drop these rows."
    return ""
