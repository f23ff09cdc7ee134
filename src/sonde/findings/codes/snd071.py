"""SND071: a head that is worse than a constant answer."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.head_accuracy import GAIN, R2_GAIN, Part
from sonde.findings.evidence.answers.head_answers import HeadAnswers, Heads
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import Trial
from sonde.findings.words.places import sentence
from sonde.findings.words.text import listed, number, percent, plural


@final
@dataclass(frozen=True)
class SND071(Rule):
    """Accuracy of a head, or of one of its labels, minus that of a constant answer."""

    errors: float = 4.0

    title: ClassVar[str] = "A head that is worse than a constant answer"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("commonest label",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "A mean over heads or labels hides a head that was not trained, or a head whose labels "
        "are in another order."
    )
    fix: ClassVar[str] = (
        "Check that the labels are in the order of the outputs; if they are, train this head."
    )
    how: ClassVar[str] = (
        "Tested for models with several heads, several labels per row, ranks, or maps, on up to "
        "2,048 rows: the accuracy (several labels: of each label; maps: of each pixel; numbers: "
        "squared errors as fractions of the targets' variance) is compared with that of the "
        "commonest answer alone, or of the mean. Raised if the head, or one of its labels, is "
        "worse by 4 standard errors over groups, or if labels in another order, classes of pixels "
        "and positions under other names (most of each renamed class right), rotated or mirrored "
        "maps, or numbers on another scale (R^2 higher by 0.2) fit far better; many possible "
        "orders are compared on half of the rows and tested on the other."
    )
    false_positives: ClassVar[str] = (
        "A head that was trained to detect every case of a rare class, at the price of false "
        "alarms."
    )
    plant: ClassVar[str] = "Several labels, two of them exchanged."
    twin: ClassVar[str] = "The labels in the model's order."

    def check(self, evidence: Evidence) -> Check:
        """Compare each head with the commonest answer."""
        heads = evidence.get(judge_heads)
        if not isinstance(heads, Heads) or not heads.found:
            reasons = heads.reasons if isinstance(heads, Heads) else {}
            return self.not_applicable(
                next(iter(reasons.values()), "the model has one head, which SND037 judges")
            )
        head = min(heads.found, key=lambda h: self._lead(h)[0])
        value, se = self._lead(head)
        figure = Figure(
            "lead", value, value - self.errors * se, value + self.errors * se, "share", null=0.0,
            threshold=0.0, direction="below", n_rows=len(head.right), n_groups=head.n_groups,
        )  # fmt: skip
        turned = next((h for h in heads.found if h.other is not None), None)
        if turned is not None:
            return self._of_order(turned)
        if math.isnan(value) or value + self.errors * se >= 0:
            return self.clear(figure)
        return self._of_head(head, figure)

    def _lead(self, head: HeadAnswers) -> tuple[float, float]:
        """Return the smallest lead over a constant answer, and its standard error."""
        leads = [head.lead]
        if head.measure == "label_accuracy":
            leads += [(p.value - p.usual, p.lead_error) for p in head.parts]
        return min(leads, key=lambda lead: lead[0] + self.errors * lead[1])

    def _of_order(self, head: HeadAnswers) -> Check:
        assert head.other is not None
        words, after = head.other
        if head.measure == "rms_error":
            return self._of_scale(head, words, after)
        figure = Figure(
            "gain", after - head.value, unit="share", null=0.0, threshold=GAIN,
            n_rows=len(head.right),
        )  # fmt: skip
        text = (
            f"{_named(head)} is correct on {percent(head.value)} of {_of(head)}; {words} the "
            f"head is correct on {percent(after)}."
        )
        return self.raised_with(
            "error", sentence(text, f"{plural(len(head.right), 'row')}."), figure,
            examples=_wrong(head), effect=min(1.0, after - head.value),
            fix=f"Give labels and outputs in the same order: {words}, {percent(after)} are "
                f"correct instead of {percent(head.value)}.",
            trial=_trial(head, words), location=Location(answers=True),
        )  # fmt: skip

    def _of_scale(self, head: HeadAnswers, words: str, after: float) -> Check:
        """Report numbers that fit the targets on another scale."""
        rows = plural(len(head.right) // 2, "row")
        text = (
            f"{_named(head)} has a mean R^2 of {number(head.own)} over its numbers; {words}, it "
            f"has {number(after)} ({rows} held out from the choice)."
        )
        figure = Figure(
            "gain", after - head.own, null=0.0, threshold=R2_GAIN, n_rows=len(head.right)
        )
        return self.raised_with(
            "warning", sentence(text), figure, examples=_wrong(head),
            effect=min(1.0, after - head.own), location=Location(answers=True),
            fix=f"{head.line}, where y is the model's output: R^2 of {number(after)} instead of "
                f"{number(head.own)}.",
        )  # fmt: skip

    def _of_head(self, head: HeadAnswers, figure: Figure) -> Check:
        worst = [p for p in head.parts if p.value + self.errors * p.lead_error < p.usual]
        if head.measure == "rms_error":
            text = (
                f"{_named(head)} has a root mean square error of {number(head.value)}; always "
                f"answering the mean gives {number(head.commonest)}."
            )
        elif worst and head.measure == "label_accuracy":
            text = f"{_named(head)}: {listed([_said(p) for p in worst], 2)}."
        else:
            text = (
                f"{_named(head)} is correct on {percent(head.value)} of {_of(head)}, always "
                f"giving the commonest answer on {percent(head.commonest)}."
            )
        return self.raised_with(
            "warning", sentence(text, f"{plural(len(head.right), 'row')}."), figure,
            examples=_wrong(head), effect=min(1.0, max(0.0, -figure.value)),
        )  # fmt: skip


def _trial(head: HeadAnswers, words: str) -> Trial | None:
    """Return the trial of a change of the labels on the rows that did not choose it."""
    if head.mended is None:
        return None
    judges = torch.isfinite(head.mended)
    rows = torch.tensor(head.examples)[judges]
    scores = head.right[judges].double(), head.mended[judges]
    change = words.removeprefix("with ")
    return Trial(change, "labels", "accuracy", rows, *scores, group=head.group[judges])


def _said(part: Part) -> str:
    return (
        f"label {part.name} is correct on {percent(part.value)} of rows, a constant answer on "
        f"{percent(part.usual)}"
    )


def _of(head: HeadAnswers) -> str:
    return {"label_accuracy": "labels", "pixel_accuracy": "pixels"}.get(head.measure, "rows")


def _named(head: HeadAnswers) -> str:
    return f"The head {head.name!r}" if head.name else "The model"


def _wrong(head: HeadAnswers) -> tuple[int, ...]:
    """Return the examples that the head gets wrong, worst first."""
    worst = head.right.argsort(descending=head.measure == "rms_error").tolist()
    return tuple(head.examples[i] for i in worst if head.right[i] != 1)
