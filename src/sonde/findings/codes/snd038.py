"""SND038: labels in another order than the model's classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.evidence.answers.answers import ClassAnswers, ClassAnswersRule
from sonde.findings.evidence.answers.class_renaming import Renaming, renaming
from sonde.findings.evidence.answers.labels import LabelEvidence, class_name
from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.findings.evidence.shared_rows import examples_at
from sonde.findings.evidence.trials.answer_trials import answer_trial
from sonde.findings.evidence.trials.class_number_shift import ClassStep, class_step
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import listed, percent, plural, shortened


@final
@dataclass(frozen=True)
class SND038(ClassAnswersRule):
    """Accuracy gained by renaming the classes."""

    level: float = 0.001
    gain: float = 0.1
    lag: float = 0.2

    title: ClassVar[str] = "Labels in another order than the model's classes"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = (
        "near chance",
        "below probe",
        "confused classes",
        "class order",
    )
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND068", "SND069", "SND070"), levels=SERIOUS),
        Explains(("SND037", "SND039", "SND046", "SND061", "SND062", "SND063", "SND064")),
    )
    why: ClassVar[str] = (
        "The model knows the classes, but its answers count as wrong: names were exchanged or "
        "shifted by one, in the data or in the list of the model's classes."
    )
    fix: ClassVar[str] = (
        "List the classes in the order of the model's outputs: --classes, or the label column."
    )
    how: ClassVar[str] = (
        "The one-to-one assignment of answers to labels with the highest accuracy is found on "
        "half of the groups (linear assignment). Its cycles are tested on the other half: the "
        "weaker half of a cycle's classes must be answered by the assigned class more often "
        "than by any other (binomial, corrected for the number of cycles: 0.1 %, or 5 % if all "
        "cycles together pass 0.1 %). A chain that does not close counts only if it contains "
        "every class. With this renaming, the model's log loss at its best temperature must be "
        "at least 10 % below the entropy of the labels, and its accuracy at most 20 percentage "
        "points below that of the probe at the last site. If classes have too few rows for this "
        "test and there are at least five classes, the difference between the numbers of label "
        "and answer that is best on half of the groups must be correct on half of the other "
        "rows (sign test, 1 %)."
    )
    false_positives: ClassVar[str] = (
        "Two classes whose labels in the data were exchanged on purpose; an untrained model of "
        "two classes that is confident of the opposite by luck."
    )
    plant: ClassVar[str] = "A trained net and labels shifted by one; two labels exchanged."
    twin: ClassVar[str] = "The true labels; a class that is always mistaken for another one."

    def check(self, evidence: Evidence) -> Check:
        """Search for exchanged classes; with few rows of each class, for a constant shift."""
        usual = super().check(evidence)
        step = None if usual.state in ("raised", "clear") else class_step(evidence)
        return usual if step is None else self._of_step(step)

    def _of_step(self, found: ClassStep) -> Check:
        before, after = (float(x.mean()) for x in (found.trial.before, found.trial.after))
        n, size = len(found.trial.rows), abs(found.step)
        side = "above" if found.step > 0 else "below"
        text = (
            f"In {percent(after)} of {plural(n, 'row')} held out from the choice, the number of "
            f"the model's answer is {size} {side} that of the label; the model is correct on "
            f"{percent(before)} of them: labels or answers are shifted by {size}."
        )
        figure = Figure("renamed_gain", after - before, unit="share", null=0.0,
                        p=found.trial.p, n_rows=n)  # fmt: skip
        sign = "+" if found.step > 0 else "-"
        return self.raised_with(
            "error",
            sentence(text),
            figure,
            effect=min(1.0, after - before),
            fix=f"label = label {sign} {size} (or correct the inputs, if they shift the answers: "
            f"the sampling rate of signals, for example): correct on {percent(after)} instead "
            f"of {percent(before)}.",
            trial=found.trial,
            location=Location(answers=True),
        )

    def judged(self, evidence: Evidence, found: ClassAnswers, labels: LabelEvidence) -> Check:
        """Search for classes whose names are exchanged."""
        names = renaming(found, self.level)
        if names is None:
            return self.clear(self._figure(found, 0.0))
        right = found.answer == names.renamed(found)
        accuracy = float(right.double().mean())
        figure = self._figure(found, accuracy - found.accuracy, names.p)
        probe = labels.sites[-1].accuracy
        if names.gain(found) < self.gain or accuracy < probe - self.lag:
            return self.clear(
                figure, "even after renaming, the model's answers are no better than guesses"
            )
        return self._raised(evidence, found, labels, names, figure)

    def _figure(self, found: ClassAnswers, value: float, p: float | None = None) -> Figure:
        n_groups = len(torch.unique(found.group))
        return Figure(
            "renamed_gain", value, unit="share", null=0.0, p=p,
            n_rows=len(found.truth), n_groups=n_groups,
        )  # fmt: skip

    def _raised(
        self,
        evidence: Evidence,
        found: ClassAnswers,
        labels: LabelEvidence,
        names: Renaming,
        figure: Figure,
    ) -> Check:
        text = (
            f"{_in_words(evidence.data, names.answer_for)} With this renaming, "
            f"{percent(figure.value + found.accuracy)} of "
            f"the answers are correct, without it {percent(found.accuracy)} "
            f"({plural(figure.n_rows, 'row')})."
        )
        right = found.answer == names.renamed(found)
        where = torch.nonzero(right & ~found.right).flatten()
        return self.raised_with(
            "error",
            sentence(text),
            figure,
            sites=(labels.sites[-1].key,),
            examples=tuple(examples_at(evidence, labels.where[where].tolist())),
            figures=found.given(where),
            classes=tuple(class_name(evidence.data, y) for y in names.answer_for),
            effect=min(1.0, figure.value),
            next=read_command(labels.sites[-1].key),
            trial=answer_trial(
                evidence, labels.where, "classes renamed", "answers", found.right, right
            ),
            location=Location(answers=True),
        )


def _in_words(data: DataEvidence, answer_for: Mapping[int, int]) -> str:
    """Describe which label corresponds to which class of the model."""

    def name(number: int) -> str:
        return shortened(class_name(data, number), 20)

    pairs = list(answer_for.items())
    label, answer = pairs[0]
    if len(pairs) == 2:
        return (
            f"Two classes have exchanged names: label {name(label)} is the model's class "
            f"{name(answer)}, and the other way round."
        )
    example = f"label {name(label)} is the model's class {name(answer)}"
    steps = {a - y for y, a in pairs}
    if len(steps) <= 2 and min(map(abs, steps)) == 1:
        way = "down" if 1 in steps else "up"
        return f"Labels are shifted {way} by one: {example}."
    others = [f"{name(y)} is {name(a)}" for y, a in pairs[1:]]
    return (
        f"{plural(len(pairs), 'label')} stand for other classes of the model: {example}; "
        f"{listed(others)}."
    )
