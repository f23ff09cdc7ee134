"""SND061: groups of inputs on which the model is much worse."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.findings.codes._weak_rule import WeakGroupRule
from sonde.findings.evidence.answers.answers import class_answers, probabilities
from sonde.findings.evidence.inputs.weak_groups import WeakRows, weak_rows, weak_table, worst_pairs
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.trials.answer_trials import logit_constant
from sonde.findings.evidence.trials.calibration import best_temperature
from sonde.findings.rule import Breaks, Section, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.text import number, percent, plural
from sonde.metrics._conditions import Equals, Nearest
from sonde.metrics.weak_groups import WeakGroup


@final
@dataclass(frozen=True)
class SND061(WeakGroupRule):
    """Accuracy in a group of inputs, compared with the other inputs."""

    warning: float = 0.1

    title: ClassVar[str] = "A group of inputs on which the model is much worse"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("confused classes", "weak group")
    breaks: ClassVar[Breaks] = "some answers"
    section: ClassVar[Section] = "weak_groups"
    figure_name: ClassVar[str] = "weak_group_gap"
    unit: ClassVar[str] = "share"
    why: ClassVar[str] = (
        "An average hides a kind of input that the model has not learned: a rare style, one "
        "sensor, short texts."
    )
    fix: ClassVar[str] = (
        "Add rows like these to the training set, or let the model answer 'not sure' on them: "
        "sonde score --group."
    )
    how: ClassVar[str] = (
        "On a random half of the groups of the sampled labelled rows: groups are built from "
        "single values and from the lowest and highest values of the data's own columns, of "
        "length, size, brightness, contrast, sharpness and the answer, and from clusters of the "
        "states (k-means with 5, 10 and 20 centres on 16 principal components, at most 6 "
        "sites), alone or in pairs. The five groups that explain most of the errors are kept. "
        "On the other half, both error rates have an interval, at 99 % over all groups tested "
        "there, exact for rows without groups. The interval of the group must lie 10 percentage "
        "points above that of the rest. A cluster of states is a note if the model's confidence "
        "is as low as its accuracy: its mean probability lies less than 10 percentage points "
        "above the upper confidence limit of its accuracy there, at the best temperature of all "
        "other rows if that is above 1."
    )
    false_positives: ClassVar[str] = "Inputs that nobody can classify, such as blurred images."
    plant: ClassVar[str] = "A style, a sensor or a length that the net was not trained on."
    twin: ClassVar[str] = "The same net on data without that group; errors on random rows."

    def found(self, evidence: Evidence) -> WeakRows | str:
        """Return the groups in which the model may be less accurate."""
        weak = weak_rows(evidence)
        if weak is not None:
            return weak
        reason = class_answers(evidence)
        return reason if isinstance(reason, str) else "no answers"

    def said(self, group: WeakGroup) -> str:
        """Describe the accuracy in the group and elsewhere."""
        return (
            f"correct on {percent(1 - group.loss)} ({percent(1 - group.high)} to "
            f"{percent(1 - group.low)}) of these inputs, and on {percent(1 - group.elsewhere)} "
            "of the others."
        )

    def is_expected(self, evidence: Evidence, found: WeakRows, group: WeakGroup) -> bool:
        """Return whether low confidence already predicts the low accuracy of a cluster of states.

        If the model is too sure of all other rows too (SND069), their best temperature is applied.
        """
        if not all(isinstance(c, Nearest) for c in group.conditions):
            return False
        logits = shared_rows(evidence).column("logits")
        assert logits is not None  # weak_rows has them
        log_p = probabilities(logits[found.where].double()).clamp(min=1e-12).log()
        rest = found.label < log_p.shape[1]
        rest[group.rows] = False
        temperature = max(1.0, best_temperature(log_p[rest], found.label[rest]))
        sure = (log_p[group.rows] / temperature).softmax(1).amax(1).mean()
        return float(sure) <= 1 - group.low + self.warning

    def confused(
        self, evidence: Evidence, found: WeakRows, group: WeakGroup
    ) -> list[tuple[str, str, int]]:
        """Return the most frequent errors of the group."""
        return worst_pairs(evidence, found, group)

    def advice(self, evidence: Evidence, group: WeakGroup) -> str:
        """Return the bias that corrects a class that is answered too often, if a bias helps."""
        moved = logit_constant(evidence)
        if moved is None or moved.constant >= 0 or not moved.trial.holds:
            return ""
        answers = [c for c in group.conditions if isinstance(c, Equals) and c.kind == "answer"]
        if [int(c.value) for c in answers] != [moved.label]:
            return ""
        before, after = (percent(float(x.mean())) for x in (moved.trial.before, moved.trial.after))
        return (
            f"logits[:, {moved.label}] -= {number(-moved.constant)}: correct on {after} of "
            f"{plural(len(moved.trial.rows), 'row')} held out from the choice, instead of {before}."
        )

    def tables(
        self, evidence: Evidence, found: WeakRows, groups: list[WeakGroup]
    ) -> dict[str, Any]:
        """Return all groups with their member rows."""
        return {"weak_groups": weak_table(evidence, found, groups)}
