"""SND065: a small part of the input alone tells the label, and the model leans on it."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._once import once
from sonde.findings._places import read_command
from sonde.findings._text import number, percent, plural, shortened
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Finding, Rule, Theme
from sonde.findings.shortcuts import Shortcut, ShortcutEvidence


@final
@dataclass(frozen=True)
class SND065(Rule):
    """How much of a class the model loses where the part that tells it is exchanged."""

    drop: float = 0.1
    auroc: float = 0.99
    spread: float = 0.03

    title: ClassVar[str] = "A small part of the input tells the label, and the model leans on it"
    theme: ClassVar[Theme] = "labels"
    why: ClassVar[str] = (
        "A mark in a corner, one word or one column that happens to go with a class lets a model "
        "score well and fail wherever it is missing."
    )
    fix: ClassVar[str] = (
        "Remove that part from all inputs, or exchange it at random between classes, and train "
        "again."
    )
    how: ClassVar[str] = (
        "Parts are all squares of a quarter of a picture's side at steps of an eighth, the columns "
        "of a table, and the tokens of texts. On half of at most 800 rows of different groups, the "
        "ridge direction of each part is fitted to each class and scored on other rows; of the "
        "three parts that tell a class with AUROC 0.95 and vary least within it, the one is taken "
        "whose exchange costs most. On the other half it is exchanged with that of rows of other "
        "classes (a token: replaced by tokens of theirs), against that of rows of the same class "
        "(against as many other tokens). Raised where AUROC is 0.99 and the lost accuracy 0.1 "
        "there, with an interval at 99.9 % over all classes; a warning where the part's score "
        "also varies within the class by less than 3 % of its distance from the others, a note "
        "otherwise. Marks that move, and marks in every row, are not found; models above two "
        "million weights and large inputs are tested with --deep."
    )
    false_positives: ClassVar[str] = (
        "A part that makes the class what it is, such as the hole of a zero: mostly a note."
    )
    plant: ClassVar[str] = "A column that repeats the label, in training too."
    twin: ClassVar[str] = "The same rows, and a net that learned without that column."

    def check(self, evidence: Evidence) -> Check:
        """Judge the part that costs most, the constant ones first."""
        found = _shortcuts(evidence)
        if isinstance(found, str):
            return self.not_applicable(found)
        telling = [s for s in found.tried if s.auroc >= self.auroc and s.drop >= self.drop]
        if not telling:
            drop = max((s.drop for s in found.tried), default=0.0)
            figure = Figure("drop", drop, unit="share", threshold=self.drop, n_rows=found.n_rows)
            return self.clear(figure)
        worst = max(telling, key=lambda s: (s.spread <= self.spread, s.low))
        if worst.low <= 0:
            return self.clear(self._figure(worst))
        return self.raised(self._finding(evidence, worst, found))

    def _figure(self, worst: Shortcut) -> Figure:
        return Figure(
            "drop", worst.drop, worst.low, worst.high, unit="share", null=0.0,
            threshold=self.drop, n_rows=worst.n, n_groups=worst.n, confidence=0.999,
        )  # fmt: skip

    def _finding(self, evidence: Evidence, worst: Shortcut, found: ShortcutEvidence) -> Finding:
        name = shortened(worst.name, 16)
        done, usual = {
            "place": ("With that of other classes pasted in", f"with that of another {name!r}"),
            "column": ("With values of other classes", f"with those of another {name!r}"),
            "token": ("Replaced by tokens of other classes", "with other tokens replaced"),
        }[found.kind]
        sentence = (
            f"{name!r} can be told by {shortened(worst.where, 52)} alone (AUROC "
            f"{number(worst.auroc, 3)}). {done}, the model is right on {percent(worst.right)} of "
            f"{plural(worst.n, 'row')}, {usual} on {percent(worst.kept)}. "
            f"Whether it belongs to {name!r} is yours to judge."
        )
        return Finding(
            self.code,
            "warning" if worst.spread <= self.spread else "note",
            sentence,
            self._figure(worst),
            classes=(worst.name,),
            examples=worst.examples,
            effect=max(0.0, worst.drop),
            next=read_command(evidence.sites[0].schema.key),
        )


@once
def _shortcuts(evidence: Evidence) -> ShortcutEvidence | str:
    """Return what was tried; the reason where nothing could be."""
    return "no model was run" if evidence.shortcuts is None else evidence.shortcuts(evidence)
