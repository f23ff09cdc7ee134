"""SND065: a small part of the input predicts the label, and the model relies on it."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.inputs.shortcuts import Shortcut, ShortcutEvidence, shortcut_evidence
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Figure, Finding, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import class_command
from sonde.findings.words.text import percent, plural, shortened


@final
@dataclass(frozen=True)
class SND065(Rule):
    """Accuracy lost on a class if the part that predicts it is replaced."""

    drop: float = 0.1
    elsewhere: float = 0.03
    spread: float = 0.03
    most: float = 0.7
    carried: float = 0.9
    nearly_all: float = 0.95

    title: ClassVar[str] = (
        "A small part of the input predicts the label, and the model relies on it"
    )
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shortcut",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "If a mark in a corner, a word or a column happens to occur with one class, a model "
        "can rely on it: it scores well here and fails on inputs without it."
    )
    fix: ClassVar[str] = (
        "Remove that part from all inputs, or exchange it at random between classes, and train "
        "again."
    )
    how: ClassVar[str] = (
        "Parts are all squares with a quarter of an image's side at steps of an eighth, the "
        "columns of a table, and the tokens of texts. On half of at most 800 rows of different "
        "groups, a ridge regression from each part to each class is fitted and scored on other "
        "rows. A row counts as marked if its score is nearer to the scores of the class than to "
        "the 99 % quantile of the other classes; the regression is then fitted again to the "
        "marked rows. Candidates are the six parts that mark 30 % of a class and vary least "
        "there, at most three of them on largely the same rows; the part whose exchange costs "
        "most accuracy is taken. On the other half of the rows, this part of the marked rows is "
        "exchanged with that of rows of other classes (a token, and the phrase in which it "
        "always stands, is replaced by tokens of other classes); the control is an exchange "
        "with other marked rows (for tokens, the replacement of as many other tokens). Raised "
        "if at most 3 % of other rows are marked, the score varies in the marked rows by less "
        "than 3 % of its distance from the others or 95 % of the class are marked, and the lost "
        "accuracy is 0.1, with an interval at 99.9 % over all classes. A warning if 70 % of the "
        "class are marked and the score varies by less than 3 %, or if 90 % of the rows of "
        "other classes are assigned to this class once the part is pasted in; a note otherwise. "
        "Marks that move, and marks that occur in every row, are not detected; models above two "
        "million weights and large inputs are tested with --deep."
    )
    false_positives: ClassVar[str] = (
        "A part that defines the class, such as the hole of a zero or a word of a topic: "
        "mostly a note."
    )
    plant: ClassVar[str] = "A column that repeats the label, in training too."
    twin: ClassVar[str] = "The same rows, and a net trained without that column."

    def check(self, evidence: Evidence) -> Check:
        """Judge the least variable mark or, without a mark, the part with the most certain drop."""
        shortcuts = _shortcuts(evidence)
        if isinstance(shortcuts, str):
            return self.not_applicable(shortcuts)
        telling = [s for s in shortcuts.tried if self._tells(s) and s.drop >= self.drop]
        if not telling:
            drop = max((s.drop for s in shortcuts.tried), default=0.0)
            figure = Figure(
                "drop", drop, unit="share", threshold=self.drop, n_rows=shortcuts.n_rows
            )
            return self.clear(figure)
        sure = [s for s in telling if s.low > 0]
        if not sure:
            return self.clear(self._figure(max(telling, key=lambda s: s.low)))
        # without the mark of one of two classes a row belongs to the other: less constant, that
        worst = max(sure, key=lambda s: (mark := self._is_mark(s), -s.spread if mark else s.low))
        return self.raised(self._finding(evidence, worst, shortcuts))

    def _tells(self, found: Shortcut) -> bool:
        alike = found.spread <= self.spread or found.marked >= self.nearly_all
        return alike and found.elsewhere <= self.elsewhere

    def _is_mark(self, found: Shortcut) -> bool:
        """Return whether the part is a mark: constant, or sufficient to produce the class.

        What makes a class what it is, such as the hole of a zero, varies and does not turn a row of
        another class into one of it.
        """
        is_all = found.spread <= self.spread or found.carried >= self.carried
        return is_all and found.marked >= self.most

    def _figure(self, worst: Shortcut) -> Figure:
        return Figure(
            "drop", worst.drop, worst.low, worst.high, unit="share", null=0.0,
            threshold=self.drop, n_rows=worst.n, n_groups=worst.n, confidence=0.999,
        )  # fmt: skip

    def _finding(self, evidence: Evidence, worst: Shortcut, found: ShortcutEvidence) -> Finding:
        name = shortened(worst.name, 16)
        done, usual = {
            "place": (
                "With that part of other classes pasted in",
                "with another example's part",
            ),
            "column": (
                "With values of other classes",
                "with another example's values",
            ),
            "token": ("Replaced by tokens of other classes", "with other tokens replaced"),
        }[found.kind]
        where = shortened(worst.where, 72)
        where, rows = f"{where[:1].upper()}{where[1:]}", plural(worst.n, "marked row")
        marks = f"{where} alone marks {percent(worst.marked)} of {name!r} and"
        right, kept, rest = map(percent, (worst.right, worst.kept, worst.elsewhere))
        if worst.carried >= self.carried:
            sentence = (
                f"{marks} {rest} of other rows. {done}, the model is correct on {right} of "
                f"{rows} ({kept} {usual}); pasted into others, this part makes "
                f"{percent(worst.carried)} {name!r}."
            )
        else:
            sentence = (
                f"{marks} {rest} of other rows. {done}, the model is correct on {right} of the "
                f"{rows}, {usual} on {kept}. Judge yourself whether this part belongs to "
                f"{name!r}."
            )
        return Finding(
            self.code,
            "warning" if self._is_mark(worst) else "note",
            sentence,
            self._figure(worst),
            classes=(worst.name,),
            examples=worst.examples,
            effect=max(0.0, worst.drop),
            next=class_command(worst.name),
        )


@once
def _shortcuts(evidence: Evidence) -> ShortcutEvidence | str:
    """Return the parts that were tested, or the reason why none could be tested."""
    shortcuts = evidence.get(shortcut_evidence)
    return "no model was run" if shortcuts is None else shortcuts
