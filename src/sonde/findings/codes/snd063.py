"""SND063: groups of inputs on which a regression has much larger errors."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._weak_rule import WeakGroupRule
from sonde.findings.evidence.answers.number_answers import number_rows
from sonde.findings.evidence.inputs.weak_groups import WeakRows, weak_losses
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.text import number
from sonde.metrics.weak_groups import WeakGroup


@final
@dataclass(frozen=True)
class SND063(WeakGroupRule):
    """Mean absolute error in a group of inputs minus that of the other inputs."""

    warning: float = 0.1

    title: ClassVar[str] = "A group of inputs on which a regression has much larger errors"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("weak group",)
    breaks: ClassVar[Breaks] = "some answers"
    figure_name: ClassVar[str] = "weak_group_error"
    unit: ClassVar[str] = "standard deviations"
    why: ClassVar[str] = (
        "A mean error hides a kind of input that the model has not learned: one sensor, one "
        "season, small objects."
    )
    fix: ClassVar[str] = (
        "Add rows like these to the training set, or let the model answer 'not sure' on them: "
        "sonde score --group."
    )
    how: ClassVar[str] = (
        "Absolute errors in standard deviations of the targets. Groups are searched for on one "
        "half of the sampled rows as in SND061, by the data's own columns, size, brightness, "
        "contrast, sharpness and clusters of the states. On the other half, both means have a "
        "Student interval over groups, at 99 % over all groups tested there. The interval of "
        "the group must lie 0.1 standard deviations above that of the rest. Not asked of a model "
        "whose median error is no smaller than that of always answering the median target."
    )
    false_positives: ClassVar[str] = "Inputs whose targets are noisier than the others'."
    plant: ClassVar[str] = "A sensor whose readings are scaled."
    twin: ClassVar[str] = "The same readings without the scale."

    def found(self, evidence: Evidence) -> WeakRows | str:
        """Return the groups on which a regression may have larger errors."""
        return _weak_numbers(evidence)

    def said(self, group: WeakGroup) -> str:
        """Describe the mean error in the group and elsewhere."""
        return (
            f"off by {number(group.loss)} ({number(group.low)} to {number(group.high)}) standard "
            f"deviations of the target, and on the other inputs by {number(group.elsewhere)}."
        )


@once
def _weak_numbers(evidence: Evidence) -> WeakRows | str:
    """Return the groups on which a regression may have larger errors, or the reason for none."""
    numbers = number_rows(evidence)
    if isinstance(numbers, str):
        return numbers
    where, answers, truth = numbers
    by_median = (truth - truth.median()).abs().median()
    if (answers - truth).abs().median() >= by_median:
        return "the model's errors are as large everywhere as those of the median target"
    return weak_losses(evidence, where, (answers - truth).abs() / truth.std())
