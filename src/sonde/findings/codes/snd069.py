"""SND069: an over- or underconfident classifier."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.answers.answers import (
    ClassAnswers,
    answer_columns,
    are_probabilities,
    class_answers,
)
from sonde.findings.evidence.half_intervals import Z
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.calibration import Sureness, helps, is_off, sureness
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import sentence
from sonde.findings.words.text import number, percent, plural

NO_TEMPERATURE = (
    "No single temperature lowers both the loss and the calibration error on held-out rows: "
    "calibrate on your own data, class by class."
)


@final
@dataclass(frozen=True)
class SND069(Rule):
    """Mean confidence of the answers minus their accuracy.

    Parameters
    ----------
    over, under : float
        Least difference of a model that is too sure, or not sure enough, for a note.
    much_over, much_under : float
        For a warning.
    fall, halved : float
        Least share of the loss that the temperature takes away: for a note, and for a warning.
    errors : float, default=3.0
        Least difference in standard errors.
    fine : float, default=0.9
        Least share of correct answers at which the temperature can be the cause of what is wrong.
    factor : float, default=5.0
        Least factor between 1 and a temperature that is the cause, or a warning by the loss alone:
        long training leaves nets with temperatures up to 4.5.
    doubt : float, default=0.5
        Largest doubt, as a share of the doubt at equal probabilities, of a model that is sure of
        guesses.
    certain : float, default=0.9
        Least probability of a wrong answer whose row is listed.
    """

    over: float = 0.05
    under: float = 0.1
    much_over: float = 0.15
    much_under: float = 0.3
    fall: float = 0.3
    halved: float = 0.5
    errors: float = 3.0
    fine: float = 0.9
    factor: float = 5.0
    doubt: float = 0.5
    certain: float = 0.9

    title: ClassVar[str] = "A classifier that is over- or underconfident"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("confidence",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "Decisions that use the probabilities, such as thresholds and sums, are wrong although "
        "the accuracy is unchanged. Causes are a softmax applied twice, a wrong temperature, or "
        "long training."
    )
    fix: ClassVar[str] = "Divide the logits by a temperature that is chosen on held-out rows."
    how: ClassVar[str] = (
        "The mean of the largest probability minus the accuracy, with a standard error over "
        "groups. The expected calibration error uses ten bins of equal size; the temperature "
        "with the lowest loss is chosen on half of the groups and evaluated on the other half. "
        "A difference of 3 standard errors is a note from 0.05 on if the model is "
        "overconfident, from 0.1 on if it is underconfident, and a warning from 0.15 and 0.3 on "
        "(underconfident only if the model returns probabilities: small logits are often "
        "intended, with smoothed labels or bounded weights). Also overconfident if that "
        "temperature removes 30 % of the loss of the other half (50 %, at a temperature of 5 or "
        "more, for a warning). Only such a temperature, or one of a fifth or less, can be the "
        "cause. A model "
        "that is no more accurate than the commonest label has no temperature; it is a warning if "
        "its mean confidence lies more than halfway from chance to certainty, and 0.15 and 3 "
        "standard errors above its accuracy. The wrong answers of probability 0.9 or more are "
        "listed, the surest first: often their labels or inputs are wrong."
    )
    false_positives: ClassVar[str] = "Labels smoothed in training make a model less sure."
    plant: ClassVar[str] = "A trained net whose logits are multiplied by 10."
    twin: ClassVar[str] = "The trained net."

    def check(self, evidence: Evidence) -> Check:
        """Compare the model's confidence with its accuracy."""
        sure, answers, columns = (
            sureness(evidence), class_answers(evidence), answer_columns(evidence),
        )  # fmt: skip
        if isinstance(sure, str) or isinstance(answers, str) or isinstance(columns, str):
            return self.not_applicable(str(sure))
        gap = sure.sure - sure.right
        figure = Figure(
            "sureness_gap", gap, gap - Z * sure.se, gap + Z * sure.se, "share", null=0.0,
            n_rows=sure.n, n_groups=sure.n,
        )  # fmt: skip
        if sure.right <= answers.majority + self.over:
            return self._of_guesses(sure, answers, figure)
        if not is_off(sure, self.over, self.under, self.fall, self.errors):
            return self.clear(figure)
        how = "overconfident" if sure.temperature > 1 else "underconfident"
        if gap > 0:
            loud = gap >= self.much_over
        else:
            loud = -gap >= self.much_under and are_probabilities(columns[0])
        is_far = max(sure.temperature, 1 / sure.temperature) >= self.factor
        loud = loud or (gap > 0 and is_far and sure.fall >= self.halved)
        text = (
            f"The model is {how}: its mean confidence is {percent(sure.sure)}, "
            f"its accuracy {percent(sure.right)} (expected calibration error "
            f"{percent(sure.error)}; "
            f"{plural(sure.n, 'row')})."
        )
        better = helps(sure)
        mended = f"the loss falls by {percent(sure.fall)}, the expected calibration error is"
        # a model that is often wrong has another fault: its probabilities are no cause of that
        trial = sure.trial if better and is_far and sure.right >= self.fine else None
        surest = [(i, p) for i, p in sure.wrong if p >= self.certain] if gap > 0 else []
        return self.raised_with(
            "warning" if loud else "note",
            sentence(text),
            figure,
            examples=tuple(i for i, _ in surest),
            figures=tuple(p for _, p in surest),
            effect=min(1.0, abs(gap)),
            fix=f"logits = logits / {number(sure.temperature)}: {mended} {percent(sure.mended)} "
            f"instead of {percent(sure.given)} (rows held out from the choice)."
            if better
            else NO_TEMPERATURE,
            trial=trial,
        )

    def _of_guesses(self, found: Sureness, answers: ClassAnswers, figure: Figure) -> Check:
        """Judge whether a model that is no more accurate than the commonest label is sure.

        Other checks of such a model defer to each other if no probe finds the labels either.
        """
        chance = 1 / answers.n_classes
        doubt = (1 - found.sure) / (1 - chance)
        low = figure.value - self.errors * found.se
        if doubt > self.doubt or figure.value < self.much_over or not low > 0:
            return self.clear(figure, "the model is no more accurate than the commonest label")
        return self.raised_with(
            "warning",
            f"The model is {percent(found.sure)} sure of its answers on average, but correct on "
            f"{percent(found.right)} of {plural(found.n, 'row')}; always answering the commonest "
            f"label is correct on {percent(answers.majority)}.",
            figure,
            examples=tuple(i for i, _ in found.wrong),
            figures=tuple(p for _, p in found.wrong),
            effect=min(1.0, figure.value),
            fix="Its answers to these rows are guesses: check that inputs and labels are those of "
            "training, and in its order.",
        )
