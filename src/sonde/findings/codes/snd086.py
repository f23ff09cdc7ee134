"""SND086: some rows have their targets in another form."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.answers.restored_targets import restored_targets
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import sentence
from sonde.findings.words.text import percent, plural


@final
@dataclass(frozen=True)
class SND086(Rule):
    """Fraction of a regression's wrong rows that are right with their targets in another form.

    Parameters
    ----------
    most : float, default=0.65
        Least fraction of the held-out wrong rows.
    above : float, default=0.3
        Least difference to that fraction if the targets of these rows are exchanged.
    level : float, default=0.001
        Largest p-value.
    rough : float, default=0.01
        p-value below which the rows in the other form are further off than right rows are.
    sure : float, default=0.85
        Fraction of the held-out wrong rows that a form of the cause has to mend.
    """

    most: float = 0.65
    above: float = 0.3
    level: float = 0.001
    rough: float = 0.01
    sure: float = 0.85

    title: ClassVar[str] = "Targets of some rows in another form"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("label errors", "weak group")
    breaks: ClassVar[Breaks] = "some answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND037", "SND063", "SND071"), levels=SERIOUS),
        Explains(("SND015", "SND037", "SND047", "SND049", "SND063", "SND071")),
    )
    why: ClassVar[str] = (
        "Tables that were joined may hold the same quantity in two units, with two signs, or as "
        "a number and as its logarithm: the model cannot be right about both."
    )
    fix: ClassVar[str] = "Bring the targets of the rows listed into the form of the others."
    how: ClassVar[str] = (
        "For numbers as answers, one row of each group: the usual error is estimated from the "
        "smallest quarter of the errors; a row is wrong if it is off by more than three usual "
        "errors. With 15 rows or more that are wrong, and as many that are right, a third of the "
        "wrong rows choose among forms of their targets (sign, exponentials, logarithms, powers, "
        "degrees Fahrenheit, a factor, two of several numbers exchanged, an offset, a line), for "
        "all numbers of a row and for the one that is furthest off; the others judge. Raised if "
        "65 % of these are as near as right rows are, 30 percentage points more than with the "
        "targets of these rows exchanged (p below 0.001). Constants that are fitted are "
        "tried only if few errors lie between those of the right and of the wrong rows: they would "
        "mend long tails. A form that mends less than 85 % or leaves these rows further off "
        "than right rows are (1 %, Mann-Whitney test) is a warning and no cause: another curve "
        "does that. It is not raised if half as many rows as are wrong lie between: then the "
        "errors have one long tail."
    )
    false_positives: ClassVar[str] = (
        "A second kind of rows whose targets follow from the model's answers by the same formula."
    )
    plant: ClassVar[str] = "A third of the targets of a table divided by 1,000."
    twin: ClassVar[str] = "The same table with all targets in one unit."

    def check(self, evidence: Evidence) -> Check:
        """Search for a form of the targets in which wrong rows are right."""
        rows = restored_targets(evidence)
        if isinstance(rows, str):
            return self.not_applicable(rows)
        if rows is None:
            return self.clear(Figure("mended", 0.0, unit="share"), "too few rows are wrong")
        figure = Figure(
            "mended", rows.mended, unit="share", null=rows.chance, p=rows.p, n_rows=rows.n,
            threshold=max(self.most, rows.chance + self.above),
        )  # fmt: skip
        if rows.mended < self.most or rows.mended < rows.chance + self.above:
            return self.clear(figure)
        if rows.p >= self.level:
            return self.clear(figure, "so many mended rows can be chance")
        is_rough = rows.rougher < self.rough or rows.mended < self.sure
        if is_rough and rows.is_tail:
            return self.clear(
                figure, "the errors have a long tail, which other curves bring nearer"
            )
        text = (
            f"Of {plural(rows.n, 'row')} that the model gets wrong, {percent(rows.mended)} are "
            f"right with their targets {rows.form.words}: {plural(len(rows.rows), 'row')} "
            f"({percent(rows.mended * rows.wrong)} of all) have targets in another form."
        )
        rival = "Or the model is off by this in one kind of rows." if rows.form.is_fitted else ""
        rival = "It is no exact form: look for one like it." if is_rough else rival
        return self.raised_with(
            "warning" if rows.form.is_fitted or is_rough else "error",
            sentence(text, rival),
            figure,
            examples=rows.rows,
            effect=min(1.0, rows.mended * rows.wrong),
            fix=f"For these rows alone (--rows FILE names all of them): {rows.form.line}.",
            trial=None if is_rough else rows.trial,
            location=Location(answers=True),
        )
