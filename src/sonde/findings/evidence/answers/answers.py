"""Accuracy of a model's own answers, compared with simple guesses and with its layers.

A classifier is compared with the labels of the data, a language model with the next tokens, a
regression with its targets.
"""

import math
import shlex
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.wording import plural
from sonde.findings.evidence.answer_counts import AnswerCountsState
from sonde.findings.evidence.answers.head_answers import Heads, head_answers, of_head
from sonde.findings.evidence.answers.labels import (
    LabelEvidence,
    answered_labels,
    blocked,
    class_name,
    label_evidence,
    usable,
)
from sonde.findings.evidence.answers.number_answers import (
    NumberAnswers,
    number_answers,
    number_rows,
    root_mean,
)
from sonde.findings.evidence.answers.reference import Reference
from sonde.findings.evidence.half_intervals import Z
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.rule import Check, Rule
from sonde.findings.words.text import listed, percent
from sonde.run.reading.class_order import best_order
from sonde.stats.intervals import grouped_share, wilson
from sonde.tap import LiveStream

MOST_PAIRS: Final = 12
MOST_TYPED: Final = 12
WHOLE_TABLE: Final = 20
NO_LABELS: Final = (
    "the data have no labels. If a column holds them, name it with label_column= (--label-column)"
)


@dataclass(frozen=True, eq=False)
class ClassAnswers:
    """A classifier's answers on the sampled rows that have a label.

    Parameters
    ----------
    truth, answer : Int[Tensor, "row"]
        The label, and the class of the largest logit.
    probability : Float[Tensor, "row class"]
        What the model gives each of its classes.
    group : Int[Tensor, "row"]
    doubt : float
        Mean entropy of the model's probabilities, as a share of the entropy of equal ones.
    majority : float
        Share of the most frequent label.
    renamed : float
        Share that is right after the one-to-one renaming of answers that helps most.
    unseen : float
        Share of answers that are no row's label.
    where : Int[Tensor, "row"]
        Index into the shared rows.
    labels : LabelEvidence or None
        What a linear probe finds at each site on the same rows; None for answers to all rows, and
        if classes have too few rows.
    """

    truth: Int[Tensor, "row"]
    answer: Int[Tensor, "row"]
    probability: Float[Tensor, "row class"]
    group: Int[Tensor, "row"]
    doubt: float
    majority: float
    renamed: float
    unseen: float
    where: Int[Tensor, "row"]
    labels: LabelEvidence | None

    @property
    def right(self) -> Bool[Tensor, "row"]:
        """Whether each answer equals the label."""
        return self.answer == self.truth

    def given(self, rows: Int[Tensor, "_row"]) -> tuple[float, ...]:
        """Return the model's probability of the label of each of these rows."""
        truth = self.truth[rows].clamp(max=self.n_classes - 1)
        p = self.probability[rows].gather(1, truth[:, None])[:, 0]
        return tuple(torch.where(self.truth[rows] < self.n_classes, p, 0.0).tolist())

    @property
    def n_classes(self) -> int:
        """Number of the model's classes."""
        return self.probability.shape[1]

    @property
    def accuracy(self) -> float:
        """Fraction of correct answers."""
        return float(self.right.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy over groups."""
        member = torch.unique(self.group, return_inverse=True)[1]
        return grouped_share(self.right.numpy(), member.numpy())


@once
def class_answers(evidence: Evidence) -> ClassAnswers | str:
    """Return a classifier's answers to all labelled sampled rows, or a reason for none."""
    return _answers_at(evidence, None)


@once
def compared_answers(evidence: Evidence) -> ClassAnswers | str:
    """Return the answers to rows of classes that a probe can judge, or a reason for none.

    A probe needs rows of each class: figures that are compared with it are of the same rows.
    """
    return _answers_at(evidence, label_evidence(evidence) if usable(evidence) else None)


def _answers_at(evidence: Evidence, labels: LabelEvidence | None) -> ClassAnswers | str:
    """Return the answers to the rows of these labels, or to all labelled rows."""
    columns = answer_columns(evidence)
    if isinstance(columns, str):
        return columns
    shared, (logits, label) = shared_rows(evidence), columns
    where = torch.nonzero(label >= 0).flatten() if labels is None else labels.where
    if len(where) == 0:
        return "no sampled row has both a label and an answer without NaN or infinity"
    truth, p = label[where], probabilities(logits[where].double())
    answer = p.argmax(1)
    entropy = -torch.special.xlogy(p, p).sum(1).nanmean()
    return ClassAnswers(
        truth=truth,
        answer=answer,
        probability=p,
        group=shared.group[where],
        doubt=float(entropy) / math.log(p.shape[1]),
        majority=float(torch.bincount(truth).max()) / len(truth),
        renamed=_renamed(answer, truth),
        unseen=float((~torch.isin(answer, truth)).double().mean()),
        where=where,
        labels=labels,
    )


class ClassAnswersRule(Rule):
    """A rule about a classifier's own answers; it applies if the correct answers are known."""

    def check(self, evidence: Evidence) -> Check:
        """Judge the answers, or report what is missing."""
        compared = compared_answers(evidence)
        if isinstance(compared, str):
            return self.not_applicable(compared)
        if (stop := blocked(self, evidence)) is not None:
            return stop
        assert compared.labels is not None  # blocked asks for the same
        return self.judged(evidence, compared, compared.labels)

    @abstractmethod
    def judged(self, evidence: Evidence, found: ClassAnswers, labels: LabelEvidence) -> Check:
        """Return the check of these answers, compared with a probe of the labels."""


def right_rows(evidence: Evidence, new_classes: bool = False) -> Float[Tensor, "row"] | None:
    """Return whether the model is correct on each sampled row (NaN: no label), or None if unknown.

    Cheaper than ``class_answers``: no probe is fitted. With ``new_classes`` the labels may have
    more classes than the model; rows of the additional classes are wrong.
    """
    columns = answer_columns(evidence, new_classes)
    if isinstance(columns, str):
        return None
    logits, label = columns
    right = (logits.argmax(1) == label).double()
    return torch.where(label >= 0, right, math.nan)


def answer_columns(evidence: Evidence, new_classes: bool = False) -> tuple[Tensor, Tensor] | str:
    """Return logits and labels of the sampled rows, or the reason why they cannot be compared."""
    if evidence.data.has_labels and not evidence.sites:
        return "every row has NaN or infinity at some site"
    if not evidence.data.has_labels:
        heads = evidence.get(judge_heads)
        return next(iter(heads.reasons.values() if heads else ()), NO_LABELS)
    if not evidence.data.labels_are_models:
        return f"the labels are not the model's classes{_order(evidence)}"
    shared = shared_rows(evidence)
    logits, label = shared.column("logits"), answered_labels(shared)
    if logits is None or label is None or logits.shape[1] < 2:
        return "the model has no output with logits of at least two classes"
    n = len(torch.unique(label[label >= 0]))
    if n > logits.shape[1] and not new_classes:
        return (
            f"the labels have {plural(n, 'class', 'classes')}, but the model returns "
            f"{plural(logits.shape[1], 'number')} per row"
        )
    return logits, label


def _order(evidence: Evidence) -> str:
    """Suggest how to name the classes, with the accuracy in the usual order."""
    names, label = evidence.data.label_names or (), shared_rows(evidence).column("label")
    logits = shared_rows(evidence).column("logits")
    if logits is None or label is None or not logits.shape[1] >= 2 or not names:
        return ""
    if logits.shape[1] != len(names):
        return f"; name its {logits.shape[1]} outputs in order: --classes {','.join(names[:2])},..."
    answer, truth = logits.argmax(1)[label >= 0], label[label >= 0]
    right = float((answer == truth).double().mean())
    order = best_order(answer, truth, len(names))
    best = float((order[answer] == truth).double().mean())
    words = (
        f"; if its outputs are in the order {listed(names, 4)}, it is correct on {percent(right)}"
    )
    usual = ",".join(names)
    if best > 1.2 * right:
        names = tuple(names[k] for k in order.tolist())
        words += f", in the order {listed(names, 4)} on {percent(best)}"
    if 1.2 * right < best <= 2 * right:  # two names may be exchanged: a fault
        return f"{words}: give the correct order with --classes {shlex.quote(usual)} or another"
    typed = shlex.quote(",".join(names)) if len(names) <= MOST_TYPED else "with all of them"
    return f"{words}: then pass --classes {typed}"


def probabilities(logits: Float[Tensor, "row class"]) -> Float[Tensor, "row class"]:
    """Return the softmax of logits; values that already are probabilities stay as they are."""
    return logits if are_probabilities(logits) else logits.softmax(1)


def are_probabilities(answers: Float[Tensor, "row class"]) -> bool:
    """Return whether a model's answers are not negative and sum to 1 in each row."""
    sums = answers.sum(1)
    return bool((answers >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def _renamed(answer: Int[Tensor, "row"], truth: Int[Tensor, "row"]) -> float:
    order = best_order(answer, truth, int(max(answer.max(), truth.max())) + 1)
    return float((order[answer] == truth).double().mean())


def judge_heads(stream: LiveStream, evidence: Evidence) -> Heads:
    """Return the answers of each head, unless one column of classes or numbers judges them all."""
    bare = evidence.having({judge_heads: None})
    is_judged = any(not isinstance(f(bare), str) for f in (answer_columns, number_rows))
    return head_answers(stream, evidence.data, is_judged)


def answers_section(evidence: Evidence) -> dict[str, Any] | None:
    """Return the report's section on the model's accuracy, or None if it is not known."""
    lens = evidence.get(measure_lens)
    if isinstance(lens, LensEvidence) and math.isfinite(lens.final):
        return _of_tokens(lens)
    numbers = number_answers(evidence)
    if not isinstance(numbers, str):
        return _with_reference(_with_heads(_of_numbers(numbers), evidence), evidence)
    classes = class_answers(evidence)
    if not isinstance(classes, str):
        return _with_reference(_with_heads(_of_classes(classes, evidence), evidence), evidence)
    heads, counts = evidence.get(judge_heads), evidence.answer_counts
    if counts is not None and counts.n and counts.nonfinite == counts.n:
        return _of_no_answer(counts, evidence.data)
    return _of_heads(heads) if isinstance(heads, Heads) and heads.found else None


def _of_no_answer(counts: AnswerCountsState, data: DataEvidence) -> dict[str, Any]:
    """Return the section of a model whose answers all contain NaN or infinity."""
    low, high = wilson(0, counts.n)
    truth = data.label[data.label >= 0]
    nothing = dict.fromkeys(("per_byte", "chance", "last", "best", "confusion"))
    return nothing | {
        "measure": "accuracy",
        "value": 0.0,
        "low": low,
        "high": high,
        "commonest": float(torch.bincount(truth).max()) / len(truth),
        "n_rows": counts.n,
        "n_groups": min(counts.n, data.n_groups),
        "n_nonfinite": counts.n,
    }


def _with_heads(section: dict[str, Any], evidence: Evidence) -> dict[str, Any]:
    """Return the section with the statistics of each head, if the model has several."""
    heads = evidence.get(judge_heads)
    if not isinstance(heads, Heads) or len(heads.found) < 2:
        return section
    # the last layer that ran may be another head, whose states say little of these labels
    return section | {"last": None, "heads": [of_head(h) for h in heads.found]}


def _with_reference(section: dict[str, Any], evidence: Evidence) -> dict[str, Any]:
    """Return the section with the accuracy, or error, of the healthy answers that the user gave."""
    reference = evidence.reference
    if not isinstance(reference, Reference):
        return section
    value = reference.mean
    if reference.measure == "error":
        value = section["commonest"] * math.sqrt(max(0.0, 1 - reference.mean))
    entry = {"name": reference.name, "value": value, "n_rows": len(reference.scores)}
    return section | {"reference": entry}


def _of_heads(heads: Heads) -> dict[str, Any]:
    """Return the section of a model whose accuracy is known for its heads only."""
    first = of_head(heads.found[0])
    shared = {name: first[name] for name in ("measure", "value", "low", "high", "commonest")}
    nothing = dict.fromkeys(("per_byte", "chance", "last", "best", "confusion"))
    counts = {"n_rows": first["n_rows"], "n_groups": heads.found[0].n_groups}
    return shared | nothing | counts | {"heads": [of_head(h) for h in heads.found]}


def _of_numbers(found: NumberAnswers) -> dict[str, Any]:
    value, se = root_mean(found.own, found.group)
    sites = []
    for key, squares in (found.probes[-1], found.probes[found.best]):
        error, error_se = root_mean(squares, found.group)
        sites.append({"site": key, "value": error, "se": error_se})
    return {
        "measure": "rms_error",
        "value": value,
        "low": max(0.0, value - Z * se),
        "high": value + Z * se,
        "per_byte": None,
        "chance": None,
        "commonest": float(found.mean.mean()) ** 0.5,
        "last": sites[0],
        "best": sites[1],
        "n_rows": len(found.own),
        "n_groups": len(torch.unique(found.group)),
        "confusion": None,
    }


def confusion(evidence: Evidence) -> dict[str, Any] | None:
    """Return the confusion counts over all sampled rows with a label.

    The table holds every class if there are few, else only the classes in ``pairs``, the wrong
    answers with the most rows. None if the model's answers are not known.
    """
    columns = answer_columns(evidence)
    if isinstance(columns, str) or not bool((columns[1] >= 0).any()):
        return None
    logits, label = columns
    truth, answer, data = label[label >= 0], logits[label >= 0].argmax(1), evidence.data
    k = max(logits.shape[1], int(truth.max()) + 1)
    pair, rows = torch.unique(truth * k + answer, return_counts=True)
    table = {divmod(int(p), k): int(n) for p, n in zip(pair, rows, strict=True)}
    sizes = torch.bincount(truth, minlength=k).tolist()
    wrong = [(a, b) for a, b in table if a != b]
    worst = sorted(wrong, key=lambda at: (-table[at], -table[at] / sizes[at[0]], at))[:MOST_PAIRS]
    numbers = sorted({i for at in (table if k <= WHOLE_TABLE else worst) for i in at})
    labels = [i for i in numbers if k <= WHOLE_TABLE or i in {a for a, _ in worst}]
    labels = [i for i in labels if sizes[i]]
    return {
        "labels": [class_name(data, i) for i in labels],
        "answers": [class_name(data, i) for i in numbers],
        "counts": [[table.get((a, b), 0) for b in numbers] for a in labels],
        "sizes": [sizes[a] for a in labels],
        "n_classes": k,
        "pairs": [
            {
                "label": class_name(data, a),
                "predicted": class_name(data, b),
                "n": table[a, b],
                "share": table[a, b] / sizes[a],
            }
            for a, b in worst
        ],
    }


def _of_classes(found: ClassAnswers, evidence: Evidence) -> dict[str, Any]:
    compared, counts = compared_answers(evidence), evidence.answer_counts
    sites: list[dict[str, Any]] = []
    fewer: dict[str, int] = {}
    if not isinstance(compared, str) and compared.labels is not None:
        labels = compared.labels
        chosen = labels.sites[-1], labels.sites[labels.best]
        sites = [{"site": s.key, "value": s.accuracy, "se": s.se} for s in chosen]
        fewer = {"n_probed": labels.n_rows}
    value, (low, high), n = found.accuracy, found.interval, len(found.right)
    majority, n_groups = found.majority, len(torch.unique(found.group))
    if counts is not None and counts.n > n:  # rows beyond the sample, or not finite at a site
        value, (low, high) = _of_all_rows(found, counts, _cut(evidence))
        n, n_groups = counts.n, max(n_groups, min(counts.n, evidence.n_groups))
        labels = evidence.data.label[evidence.data.label >= 0]
        if len(labels) == n:  # the data is no sample, so rows without a finite answer count too
            majority = float(torch.bincount(labels).max()) / n
    bad = 0 if counts is None else counts.nonfinite
    return {
        "measure": "accuracy",
        "value": value,
        "low": low,
        "high": high,
        "per_byte": None,
        "chance": 1 / found.n_classes,
        "commonest": majority,
        "last": sites[0] if sites else None,
        "best": sites[1] if sites else None,
        "n_rows": n,
        "n_groups": n_groups,
        "confusion": confusion(evidence),
        **({"n_nonfinite": bad} if bad else {}),
        **{name: m for name, m in fewer.items() if m < n},
    }


def _cut(evidence: Evidence) -> int:
    """Return the index of the count to use: 1 if a single logit is a probability, else 0."""
    raw = evidence.column("logits", evidence.sites[0])
    return int(raw is not None and raw.shape[1] == 1 and bool(((raw >= 0) & (raw <= 1)).all()))


def _of_all_rows(
    found: ClassAnswers, counts: AnswerCountsState, cut: int
) -> tuple[float, tuple[float, float]]:
    """Return the accuracy over all rows, and its interval, widened for groups."""
    n_correct, (low, high), own = int(counts.correct[cut]), found.interval, found.accuracy
    value = n_correct / counts.n
    if len(torch.unique(found.group)) == len(found.group):
        return value, wilson(n_correct, counts.n)
    worth = math.sqrt(len(found.right) / counts.n)
    return value, (max(0.0, value - (own - low) * worth), min(1.0, value + (high - own) * worth))


def _of_tokens(lens: LensEvidence) -> dict[str, Any]:
    sites: list[dict[str, Any]] = []
    if lens.loss is not None and lens.se is not None:
        chosen = len(lens.sites) - 1, int(torch.argmin(lens.loss))
        sites = [
            {"site": lens.sites[i], "value": float(lens.loss[i]), "se": float(lens.se[i])}
            for i in chosen
        ]
    return {
        "measure": "nats_per_token",
        "value": lens.final,
        "low": lens.final - Z * lens.final_se,
        "high": lens.final + Z * lens.final_se,
        "per_byte": lens.final / lens.bytes_per_token if lens.bytes_per_token > 0 else None,
        "chance": math.log(lens.n_words),
        "commonest": lens.unigram,
        "last": sites[0] if sites else None,
        "best": sites[1] if sites else None,
        "n_rows": lens.n_rows,
        "n_groups": lens.n_groups,
        "n_first": lens.longest,
        "confusion": None,
    }
