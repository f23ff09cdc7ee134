"""Labels and answers of DATA against OTHER: frequencies, accuracy, missing classes, copies."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import nnls
from scipy.stats import chi2
from torch import Tensor

from sonde.findings.evidence.answers.answers import answer_columns, right_rows
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.inputs.unusual_rows import first_pieces
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.stats.intervals import grouped_share

LEAST_OF_CLASS = 5
MOST_CLASSES = 50
WORST_CONDITION = 20.0


@dataclass(frozen=True, eq=False)
class LabelComparison:
    """Labels and answers of DATA and of OTHER.

    Parameters
    ----------
    classes : tuple of str
        Names of all labels and answers of either side.
    labels, answers : pair of Int[np.ndarray, "class"]
        How many inputs of DATA and of OTHER have each label, and how many sampled rows get each
        answer.
    corrected : Float[np.ndarray, "class"] or None
        Shares of OTHER's labels, estimated from its answers and from how often rows of DATA with
        each label get each answer; None if there is no estimate.
    expected : float or None
        Accuracy on OTHER if each of its classes were as easy as it is in DATA.
    """

    classes: tuple[str, ...]
    labels: tuple[Int[np.ndarray, "class"], Int[np.ndarray, "class"]]
    answers: tuple[Int[np.ndarray, "class"], Int[np.ndarray, "class"]]
    corrected: Float[np.ndarray, "class"] | None
    expected: float | None

    def only(self, side: int) -> tuple[str, ...]:
        """Return the labels that only one data set has (0 is DATA), most rows first."""
        own, theirs = self.labels[side], self.labels[1 - side]
        if not own.any() or not theirs.any():
            return ()
        classes = [k for k in np.argsort(-own, kind="stable") if own[k] and not theirs[k]]
        return tuple(self.classes[k] for k in classes)

    @property
    def shift(self) -> tuple[float, float] | None:
        """Total variation distance of the label frequencies, and its p-value."""
        return _difference(*self.labels)


def _difference(
    mine: Int[np.ndarray, "class"], theirs: Int[np.ndarray, "class"]
) -> tuple[float, float] | None:
    kept = (mine + theirs) > 0
    if not mine.any() or not theirs.any() or int(kept.sum()) < 2:
        return None
    table = np.stack([mine[kept], theirs[kept]])
    shares = table / table.sum(1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2), share_chance(table)


def share_chance(table: Float[np.ndarray, "side class"] | Int[np.ndarray, "side class"]) -> float:
    """Return the p-value of Pearson's test that both rows of counts have equal proportions."""
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return float(chi2.sf(statistic, table.shape[1] - 1))


@once
def label_comparison(evidence: Evidence) -> LabelComparison | None:
    """Return labels and answers of both data sets by name; None without OTHER or labels."""
    if evidence.versus is None:
        return None
    sides = (evidence, evidence.versus.other)
    labels = [_label_counts(side.data) for side in sides]
    # outputs have no names where the labels are not the model's classes
    is_own = evidence.data.labels_are_models
    names = max((side.data.label_names or () for side in sides), key=len) if is_own else ()
    answers = [_answer_counts(side, names) for side in sides]
    classes = sorted(set().union(*labels, *answers))
    if not classes:
        return None
    counted = [
        np.array([counts.get(name, 0) for name in classes]) for counts in (*labels, *answers)
    ]
    table = _answered_as(evidence, classes)
    return LabelComparison(
        classes=tuple(classes),
        labels=(counted[0], counted[1]),
        answers=(counted[2], counted[3]),
        corrected=_corrected(table, counted[3]),
        expected=_expected(table, counted[1]),
    )


def _label_counts(data: DataEvidence) -> Counter[str]:
    items = data.label[first_pieces(data)] if data.n else data.label
    return Counter(class_name(data, k) for k in items.tolist() if k >= 0)


def _answer_counts(side: Evidence, names: tuple[str, ...]) -> Counter[str]:
    logits = shared_rows(side).column("logits") if side.sites else None
    if logits is None or logits.ndim != 2 or not 2 <= logits.shape[1] <= len(names):
        return Counter()
    return Counter([names[k] for k in logits.argmax(1).tolist()])


def _answered_as(evidence: Evidence, names: list[str]) -> Int[np.ndarray, "class class2"] | None:
    """Return the confusion counts of DATA's sampled rows: label by answer."""
    columns = answer_columns(evidence)
    if isinstance(columns, str) or not evidence.data.label_names:
        return None
    logits, label = columns
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    at = {name: i for i, name in enumerate(names)}
    for truth, answer in zip(label.tolist(), logits.argmax(1).tolist(), strict=True):
        if truth >= 0:
            data = evidence.data
            table[at[class_name(data, truth)], at[class_name(data, answer)]] += 1
    return table


def _corrected(
    table: Int[np.ndarray, "class class2"] | None, answers: Int[np.ndarray, "class"]
) -> Float[np.ndarray, "class"] | None:
    """Solve ``answers = shares @ rates`` for non-negative fractions.

    Rates are how often DATA's rows of each label get each answer (black box shift estimation).
    """
    if table is None or not answers.any():
        return None
    sizes = table.sum(1)
    is_known = sizes >= LEAST_OF_CLASS
    if int(is_known.sum()) < 2 or answers[~is_known].sum() > 0.02 * answers.sum():
        return None
    rates = (table[is_known] / sizes[is_known, None])[:, is_known]
    if np.linalg.cond(rates) > WORST_CONDITION:
        return None
    solution = nnls(rates.T, answers[is_known] / answers.sum())[0]
    if solution.sum() <= 0:
        return None
    shares = np.zeros(len(sizes))
    shares[is_known] = solution / solution.sum()
    return shares


def _expected(
    table: Int[np.ndarray, "class class2"] | None, labels: Int[np.ndarray, "class"]
) -> float | None:
    if table is None or not labels.any():
        return None
    sizes = table.sum(1)
    is_known = sizes >= LEAST_OF_CLASS
    if not labels[is_known].any():
        return None
    recall = table.diagonal()[is_known] / sizes[is_known]
    return float((recall * labels[is_known]).sum() / labels[is_known].sum())


def accuracy(evidence: Evidence, of_other: bool = False) -> dict[str, Any] | None:
    """Return the accuracy on labelled rows of a data set, with a 95 % interval.

    In OTHER, labels may go beyond the model's classes; their rows are wrong.
    """
    right = right_rows(evidence)
    side = evidence.versus.other if of_other else evidence
    if of_other and right is not None:
        right = right_rows(side, new_classes=True)
    is_judged = None if right is None else ~torch.isnan(right)
    if right is None or is_judged is None or not bool(is_judged.any()):
        return None
    return _share(right[is_judged] > 0, shared_rows(side).group[is_judged])


def _share(right: Bool[Tensor, "row"], group: Int[Tensor, "row"]) -> dict[str, Any]:
    member = torch.unique(group, return_inverse=True)[1]
    low, high = grouped_share(right.numpy(), member.numpy())
    return {"value": float(right.double().mean()), "low": low, "high": high, "n_rows": len(right)}


@dataclass(frozen=True)
class SharedContent:
    """Number of inputs whose content occurs in both data sets, and the totals."""

    mine: int
    n_mine: int
    theirs: int
    n_theirs: int


@once
def shared_content(evidence: Evidence) -> SharedContent:
    """Return how many inputs of each data set occur in the other, byte for byte."""
    data, other = evidence.data, evidence.versus.other_data
    keys = [[side.keys[i] for i in first_pieces(side)] for side in (data, other)]
    both = set(keys[0]) & set(keys[1])
    counted = [sum(key in both for key in side) for side in keys]
    return SharedContent(counted[0], len(keys[0]), counted[1], len(keys[1]))


def labels_of_both(evidence: Evidence) -> dict[str, Any]:
    """Return the report's section on labels, answers and copies in OTHER."""
    comparison, same = label_comparison(evidence), shared_content(evidence)
    copies = {"data": same.mine, "n_data": same.n_mine, "other": same.theirs}
    section: dict[str, Any] = {
        "copies": copies | {"n_other": same.n_theirs},
        "accuracy": {
            "data": accuracy(evidence),
            "other": accuracy(evidence, of_other=True),
            "expected": None if comparison is None else comparison.expected,
        },
        "classes": [],
        "label_shift": None,
        "new": {"data": [], "other": []},
    }
    if comparison is None:
        return section
    columns = (*comparison.labels, *comparison.answers)
    totals = [int(column.sum()) for column in columns]
    order = np.argsort(-sum(columns), kind="stable")[:MOST_CLASSES]
    for k in order.tolist():
        shares = [int(c[k]) / n if n else None for c, n in zip(columns, totals, strict=True)]
        named = zip(("labels_data", "labels_other", "answers_data", "answers_other"), shares,
                    strict=True)  # fmt: skip
        corrected = None if comparison.corrected is None else float(comparison.corrected[k])
        section["classes"].append(
            {"label": comparison.classes[k], **dict(named), "corrected": corrected}
        )
    section["new"] = {"data": list(comparison.only(0)), "other": list(comparison.only(1))}
    if comparison.shift is not None:
        section["label_shift"] = {"difference": comparison.shift[0], "p": comparison.shift[1]}
    return section
