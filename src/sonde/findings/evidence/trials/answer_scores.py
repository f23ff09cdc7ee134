"""Scores and losses of a model's answers in trials, whatever form the answers have.

A row has one class, one number, several numbers, or a class at every position or pixel. Trials ask
for its loss, which chooses a change, and for its score, which judges it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.data import ItemInputs
from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.head_accuracy import class_axis
from sonde.findings.evidence.answers.head_answers import HeadAnswers, Heads
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import two_logits
from sonde.findings.evidence.trials.tempered_loss import as_logits
from sonde.findings.trial import Measure
from sonde.tap import LiveStream
from sonde.tap.hooks.outputs import leaves
from sonde.tap.model.probe import find_logits

Kind = Literal["class", "numbers", "entries"]
LEAST: Final = 12
ENOUGH: Final = 2 / 3
"""Fraction of a change's gain from which a line through the answers explains it as well."""
NO_LABELS: Final = "the data have no labels that the model answers"


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What the answers of some examples should be.

    Parameters
    ----------
    kind : {"class", "numbers", "entries"}
        One class for each row, one or several numbers, or several classes.
    truth : Tensor
        Labels or targets of the examples, (example, ...); -1 or NaN where nothing is known.
    place : mapping of int to int
        Where an example, by planned order, stands in ``truth``.
    logits_key, head : str or None
        The output that answers; ``head`` that of several labels for each row.
    """

    kind: Kind
    truth: Tensor
    place: Mapping[int, int]
    logits_key: str | None = None
    head: str | None = None

    @property
    def measure(self) -> Measure:
        """Meaning of the scores of rows."""
        return "error" if self.kind == "numbers" else "accuracy"

    @cached_property
    def _spread(self) -> Float[Tensor, "*rest"]:
        """Variance of each target over the examples."""
        x = self.truth.double()
        mean = x.nanmean(0, keepdim=True)
        return (x - mean).square().nanmean(0).clamp(min=1e-300)

    def of(self, output: object) -> Tensor | None:
        """Return the answers in a model's output, by example; None if there are none."""
        if self.head is None:
            logits = None if self.logits_key is None else find_logits(output, self.logits_key)
            return None if logits is None or logits.ndim != 2 else logits.cpu()
        logits = leaves(output).get(self.head)
        if logits is None or self.kind == "entries":
            return None if logits is None else logits.cpu()
        return logits.cpu().reshape(len(logits), *self.truth.shape[1:])

    def known(self, order: Int[Tensor, "row"]) -> Bool[Tensor, "row"]:
        """Return which rows have a label or target."""
        truth = self._truth(order)
        is_known = torch.isfinite(truth) if self.kind == "numbers" else truth >= 0
        return is_known.reshape(len(truth), -1).any(1)

    def scores(self, answers: Tensor, order: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return 1 for a right answer, the fraction of right ones, or 1 less a relative error."""
        truth = self._truth(order)
        if self.kind == "class":
            return (two_logits(answers).argmax(1) == truth).double()
        if self.kind == "numbers":
            return 1 - self._errors(answers, truth)
        truth = _as_long(truth, answers)
        right = (answers.argmax(class_axis(answers, truth)) == truth) & (truth >= 0)
        n = (truth >= 0).flatten(1).sum(1)
        return right.flatten(1).sum(1).double() / n.clamp(min=1)

    def losses(self, answers: Tensor, order: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return the loss of each row, with a gradient: nats, or errors in variances."""
        truth = self._truth(order)
        if self.kind == "numbers":
            return self._errors(answers, truth)
        if self.kind == "class":
            logits = as_logits(two_logits(answers)).double()
            return cross_entropy(logits, truth.clamp(0, logits.shape[1] - 1), reduction="none")
        truth = _as_long(truth, answers)
        logits = answers.movedim(class_axis(answers, truth), 1).double()
        each = cross_entropy(logits, truth.clamp(min=-1), reduction="none", ignore_index=-1)
        return each.flatten(1).sum(1) / (truth >= 0).flatten(1).sum(1).clamp(min=1)

    def _errors(self, answers: Tensor, truth: Tensor) -> Float[Tensor, "row"]:
        """Return squared errors in variances, as a mean over the numbers of a row."""
        answers = answers if self.head is not None else answers[:, 0]
        errors = (answers.double() - truth.double()).square() / self._spread
        return errors.reshape(len(errors), -1).nanmean(1)

    def targets(self, order: Int[Tensor, "row"]) -> Float[Tensor, "row *rest"]:
        """Return the labels or targets of rows in float64."""
        return self._truth(order).double()

    def _truth(self, order: Int[Tensor, "row"]) -> Tensor:
        return self.truth[torch.tensor([self.place[i] for i in order.tolist()])]


def _as_long(truth: Int[Tensor, "row ..."], answers: Tensor) -> Int[Tensor, "row ..."]:
    """Return labels of positions as long as the answers to shorter texts.

    Labels are padded to the longest text of all, a batch to its own longest, and trials may cut
    texts to one length.

    Examples
    --------
    >>> truth = torch.tensor([[1, 0, -1], [0, 1, 1]])
    >>> _as_long(truth, torch.zeros(2, 2, 5)).tolist()
    [[1, 0], [0, 1]]
    """
    if truth.ndim != 2 or answers.ndim != 3 or truth.shape[1] in answers.shape[1:]:
        return truth
    n_classes = int(truth.max()) + 1
    able = [
        (other == n_classes, n)  # a model rarely has classes that no row has
        for n, other in (answers.shape[1:], answers.shape[:0:-1])
        if n < truth.shape[1] and other >= n_classes
    ]
    return truth[:, : max(able)[1]] if able else truth


def answer_scores(
    stream: LiveStream, evidence: Evidence, examples: Sequence[int]
) -> AnswerScores | str:
    """Return the scores of some examples' answers, or the reason why there are none."""
    data, at = evidence.data, torch.tensor(list(examples), dtype=torch.int64)
    place = {example: i for i, example in enumerate(examples)}
    if data.target is not None and stream.logits_key is not None:
        scores = AnswerScores("numbers", data.target[at], place, stream.logits_key)
        if evidence.column("logits", evidence.sites[0]) is not None:
            return scores
    if data.has_labels and data.labels_are_models:
        return AnswerScores("class", data.label[at], place, stream.logits_key)
    heads = evidence.get(judge_heads)
    if (
        not isinstance(heads, Heads)
        or len(heads.found) != 1
        or not isinstance(stream.inputs, ItemInputs)
    ):
        return NO_LABELS
    return _of_head(stream.inputs, heads.found[0], list(examples), place)


def _of_head(
    inputs: ItemInputs, head: HeadAnswers, examples: list[int], place: Mapping[int, int]
) -> AnswerScores | str:
    columns = inputs.labels_of(examples)
    try:
        parts = [
            torch.as_tensor(np.asarray(columns[name], dtype=np.float64))
            for name in head.column.split(",")
        ]
    except (KeyError, TypeError, ValueError):
        return NO_LABELS
    truth = torch.stack(parts, 1) if len(parts) > 1 else parts[0]
    if head.measure == "rms_error":
        return AnswerScores("numbers", truth, place, head=head.name)
    if not head.of_classes or truth.ndim < 2:
        return "the answers are several labels of a row"
    return AnswerScores("entries", truth.nan_to_num(-1).long().clamp(min=-1), place, head=head.name)


def line_does_as_well(
    scores: AnswerScores,
    given: Tensor,
    made: Tensor,
    order: Int[Tensor, "row"],
    chooses: Bool[Tensor, "row"],
    enough: float = ENOUGH,
) -> bool:
    """Return whether a line through the numbers given does about as well as a change of inputs.

    A factor and an offset of the answers, fitted on the rows that choose, make up for part of
    whatever is wrong: a change of the inputs that gains little more says nothing about the inputs.

    Parameters
    ----------
    scores : AnswerScores
        Of numbers.
    given, made : Tensor
        Answers to the unchanged and to the changed inputs.
    order : Int[Tensor, "row"]
        The examples of the rows.
    chooses : Bool[Tensor, "row"]
    enough : float, default=2 / 3
        Fraction of the gain that is about as well.
    """
    truth = scores.targets(order).reshape(len(order), -1)
    x = given.double().reshape(truth.shape)
    kept = chooses & torch.isfinite(truth).all(1) & torch.isfinite(x).all(1)
    if int(kept.sum()) < LEAST:
        return False
    centre, mean = x[kept].mean(0), truth[kept].mean(0)
    slope = ((x - centre) * (truth - mean))[kept].sum(0)
    slope = slope / (x - centre)[kept].square().sum(0).clamp(min=1e-300)
    fitted = (slope * (x - centre) + mean).reshape(given.shape)
    constant = mean.expand_as(truth).reshape(given.shape)
    own, line, form, usual = (float(scores.scores(one, order)[~chooses].clamp(min=0).mean())
                              for one in (given, fitted, made, constant))  # fmt: skip
    base = max(own, usual)  # any line is as good as the mean, whatever the answers are
    return line - base >= enough * (form - base)
