"""SND037: the model's answers are far worse than its states allow."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.engine.errorbars import group_error
from sonde.findings.evidence.answers.answers import ClassAnswers, ClassAnswersRule, class_answers
from sonde.findings.evidence.answers.labels import LEAST_ROWS, LabelEvidence, SiteLabels
from sonde.findings.evidence.answers.number_answers import (
    NumberAnswers,
    Rescaled,
    number_answers,
    rescaled,
    root_mean,
)
from sonde.findings.evidence.half_intervals import Z
from sonde.findings.evidence.modules.fresh_weights import untrained_share
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.texts.read_in_a_row import read_in_a_row
from sonde.findings.evidence.trials.answer_trials import new_head
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Location, Section, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import counted_as, read_command, sentence, too_few
from sonde.findings.words.text import number, percent, plural


@final
@dataclass(frozen=True)
class SND037(ClassAnswersRule):
    """Accuracy or loss of a confident model, against a probe of its last layer and a constant."""

    lag: float = 0.2
    nats: float = 0.5
    counted: float = 0.2
    errors: float = 3.0
    doubt: float = 0.5
    follows: float = 0.1
    whole: float = 0.8

    title: ClassVar[str] = "The model's answers are worse than its states allow"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("below probe",)
    breaks: ClassVar[Breaks] = "all answers"
    section: ClassVar[Section] = "answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND069",), levels=SERIOUS),
        Explains(("SND039", "SND061", "SND062", "SND063", "SND064", "SND074")),
    )
    why: ClassVar[str] = (
        "If the answers are worse than a probe of the model's own states, or than always giving "
        "the commonest answer, the inputs are scaled or cropped differently than in training, "
        "or the labels are in another order."
    )
    fix: ClassVar[str] = (
        "First check everything before the head: that inputs are prepared as in training, that "
        "the weights are this model's, and that labels are in the model's order. If all this is "
        "correct, load the head that belongs to these layers, or train a new head."
    )
    how: ClassVar[str] = (
        "Classifiers: the accuracy is compared with the larger of two figures on the same rows, "
        "the held-out accuracy of class means at the last site (SND031) and the frequency of "
        "the commonest label; a standard error over groups. Language models: the next-token "
        "loss is compared with that of the tokens' frequencies, of these texts and of the other "
        "texts, or with counts of up to three tokens of the other texts, if these are better at "
        "most tokens. If the model loses, the texts are read one after another as well: texts of "
        "one template teach each other, and a model that has read a few of them catches up. "
        "Regressions: the "
        "mean squared error, as a fraction of the targets' variance, is compared with that of a "
        "held-out linear regression at the last site and of the mean alone. A regression is "
        "judged if the model's numbers explain half of that variance, or if they explain a "
        "tenth and a factor, offset, logarithm or power of them, fitted on half of the groups, "
        "reaches four fifths of the probe's R^2 on the others. A model with nearly even "
        "probabilities (mean entropy at least half of the maximum), as with random weights, is "
        "not judged."
    )
    false_positives: ClassVar[str] = (
        "Labels whose numbers stand for other classes than the model's; an untrained head with "
        "confident answers."
    )
    plant: ClassVar[str] = (
        "Labels in which pairs of classes are joined under the number of a third."
    )
    twin: ClassVar[str] = "Digits with their own labels, as the model was trained on them."

    def check(self, evidence: Evidence) -> Check:
        """Compare the model's answers with a probe of its last layer and with constant answers."""
        lens = evidence.get(measure_lens)
        if isinstance(lens, LensEvidence) and lens.n_words > 1:
            return self._of_tokens(evidence, lens)
        numbers = number_answers(evidence)
        if not isinstance(numbers, str):
            return self._of_numbers(evidence, numbers)
        if isinstance(class_answers(evidence), str) and evidence.data.target is not None:
            return self.not_applicable(numbers)
        return super().check(evidence)

    def judged(self, evidence: Evidence, found: ClassAnswers, labels: LabelEvidence) -> Check:
        """Compare the answers with those of a probe on the last layer."""
        last = labels.sites[-1]
        figure = self._lag(found, last)
        if figure.low is not None and self._holds(figure, self.lag):
            if found.doubt >= self.doubt:
                return self.clear(
                    figure, "the model's probabilities are nearly even, as if it were untrained"
                )
            return self._raised(evidence, found, last, figure)
        return self.clear(figure)

    def _lag(self, found: ClassAnswers, last: SiteLabels) -> Figure:
        """Return how far the model's accuracy is below the probe's or the commonest label's."""
        knows = last.accuracy >= found.majority
        right = found.right.double()
        lag = last.hit - right if knows else found.majority - right
        return self._figure("accuracy_lag", lag, found.group)

    def _figure(self, name: str, lag: Float[Tensor, "row"], group: Int[Tensor, "row"]) -> Figure:
        """Return the mean shortfall of the rows, with its interval over groups."""
        n_groups = int(group.unique().numel())
        value, se = float(lag.mean()), group_error(lag / len(lag), group, n_groups)
        return Figure(
            name,
            value,
            value - Z * se,
            value + Z * se,
            "share",
            null=0.0,
            threshold=self.lag,
            n_rows=len(lag),
            n_groups=n_groups,
        )

    def _holds(self, figure: Figure, least: float) -> bool:
        assert figure.low is not None
        return figure.value > max(least, self.errors * (figure.value - figure.low) / Z)

    def _raised(
        self, evidence: Evidence, found: ClassAnswers, last: SiteLabels, figure: Figure
    ) -> Check:
        low, high = found.interval
        text = (
            f"The model's accuracy is {percent(found.accuracy)} ({percent(low)} to "
            f"{percent(high)}); a linear probe on its last layer reaches "
            f"{percent(last.accuracy)}, the commonest label alone {percent(found.majority)}."
        )
        hint = ""
        if found.renamed - found.accuracy > self.lag and found.renamed >= last.accuracy - self.lag:
            hint = (
                "If its answers were renamed one-to-one, its accuracy would be "
                f"{percent(found.renamed)}."
            )
        elif found.unseen > 0.5:
            hint = (
                f"{percent(found.unseen)} of its answers are classes that do not occur among the "
                "labels."
            )
        return self.raised_with(
            "error" if high < found.majority else "warning",
            sentence(text, hint, f"{plural(figure.n_rows, 'row')}."),
            figure,
            sites=(last.key,),
            effect=min(1.0, figure.value),
            next=read_command(last.key),
            trial=new_head(evidence),
        )

    def _of_numbers(self, evidence: Evidence, found: NumberAnswers) -> Check:
        n_groups = len(torch.unique(found.group))
        if n_groups < LEAST_ROWS:
            return too_few(self, n_groups, LEAST_ROWS, counted_as(evidence))
        (key, probe), spread = found.probes[-1], float(found.mean.mean())
        lag = (found.own - torch.minimum(probe.mean(), found.mean.mean())) / spread
        figure = self._figure("error_lag", lag, found.group)
        if not self._holds(figure, self.lag):
            return self.clear(figure)
        rescaled_answers = rescaled(evidence)
        baseline = max(self.follows, self.whole * (1 - float(probe.mean()) / spread))
        mends = rescaled_answers is not None and rescaled_answers.error**2 < (1 - baseline) * spread
        if found.correlation**2 < self.follows or not (mends or found.correlation**2 > self.doubt):
            return self.clear(figure, "the model's outputs hardly correlate with the targets")
        own, last = (root_mean(e, found.group)[0] for e in (found.own, probe))
        text = (
            f"The model's root mean square error is {number(own)}, that of a linear probe on its "
            f"last layer {number(last)}, that of the mean alone {number(spread**0.5)}."
        )
        hint = f"Its outputs follow the targets (correlation {number(found.correlation)})."
        if rescaled_answers is not None and mends:
            hint = f"With {rescaled_answers.words} the error is {number(rescaled_answers.error)}."
        return self.raised_with(
            "warning",
            sentence(text, hint, f"{plural(len(lag), 'row')}."),
            figure,
            sites=(key,),
            effect=min(1.0, figure.value),
            next=read_command(key),
            fix=_advice(rescaled_answers) if rescaled_answers and mends else "",
            trial=rescaled_answers.trial if rescaled_answers and mends else new_head(evidence),
            location=Location(answers=True) if rescaled_answers and mends else None,
        )

    def _of_tokens(self, evidence: Evidence, lens: LensEvidence) -> Check:
        if lens.n_groups < LEAST_ROWS:
            return too_few(self, lens.n_groups, LEAST_ROWS, "texts")
        least, reached_by, n_tokens = self.nats, max(lens.unigram, lens.frequencies), 1
        words = f"the tokens' frequencies alone give a loss of {number(reached_by)}"
        if lens.counted + self.counted < reached_by + self.nats and _counts_win(lens):
            least, reached_by, n_tokens = self.counted, lens.counted, lens.counted_tokens
            words = (
                f"counts of sequences of {plural(lens.counted_tokens, 'token')} in the other "
                f"texts give a loss of {number(reached_by)}"
            )
        value, se = lens.final - reached_by, lens.final_se
        figure = Figure(
            "loss_lag",
            value,
            value - Z * se,
            value + Z * se,
            "nats",
            null=0.0,
            threshold=least,
            n_rows=lens.n_rows,
            n_groups=lens.n_groups,
        )
        if not self._holds(figure, least):
            return self.clear(figure)
        fresh = untrained_share(evidence) >= self.doubt
        if fresh or (least == self.nats and lens.doubt >= self.doubt):
            return self.clear(
                figure, "the model's probabilities are nearly even, as if it were untrained"
            )
        row, resemble = evidence.get(read_in_a_row), False
        if row is not None:
            by_few = min(row.counted[:n_tokens])
            if row.own - min(reached_by, by_few) <= least:
                return self.clear(
                    figure,
                    f"the model's loss is {number(row.own)} nats per token once it has read some "
                    "of the texts: they resemble each other, and it catches up",
                )
            # No language is learned from so few texts, only what they have in common.
            resemble = by_few < max(reached_by + least, (lens.frequencies + reached_by) / 2)
            resemble = resemble and lens.final < math.log(lens.n_words) + self.nats
        text = (
            f"The model's loss is {number(lens.final)} nats per token; {words}. "
            f"{plural(lens.n_rows, 'token')} of {plural(lens.n_groups, 'text')}."
        )
        sites = lens.sites[-1:]
        return self.raised_with(
            "note" if resemble else "warning",
            text,
            figure,
            sites=sites,
            effect=min(1.0, value / max(reached_by, 1e-9)),
            next=read_command(sites[0]) if sites else None,
            fix="The texts resemble each other: a few of them teach counts as much. Scan with "
            "texts like those of training, or load the weights again."
            if resemble
            else "Load the weights again, the head first, and check whether the tokenizer is "
            "the model's own.",
        )


def _counts_win(lens: LensEvidence) -> bool:
    """Return whether n-gram counts predict most tokens better than the model does.

    A model that is far too sure has a large mean loss, and is right all the same.
    """
    if lens.counted_tokens < 2 or lens.texts is None:
        return False
    pairs = zip(lens.texts.losses, lens.texts.counted, strict=True)
    return float(torch.cat([own - counts for own, counts in pairs]).median()) > 0


def _advice(made: Rescaled) -> str:
    """Return the advice if a rescaling of the model's outputs fits the targets."""
    if made.is_known:
        return (
            "Give the targets in the form of training. Or bring the model's answers y into the "
            f"form of these targets: {made.line}."
        )
    return (
        "Check whether targets and inputs are scaled as in training. This fitted rescaling "
        f"removes part of the error, whatever its cause: {made.line}."
    )
