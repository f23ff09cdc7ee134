"""Information about the labels in the states: a held-out linear classifier at each site."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.paired_gains import gains_and_losses, sign_test
from sonde.engine.errorbars import group_error
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import DataEvidence, Evidence, SiteEvidence
from sonde.findings.evidence.shared_rows import SharedRows, shared_rows
from sonde.findings.rule import Check, Rule
from sonde.findings.words.places import counted_as, too_few
from sonde.stats.adjusted_p import adjusted_p
from sonde.stats.class_moments import ClassMomentsState
from sonde.stats.intervals import wilson
from sonde.stats.linear_classifiers import held_out_scores

LEAST_ROWS = 30


@dataclass(frozen=True, eq=False)
class SiteLabels:
    """Held-out answers at one site, for the rows of ``LabelEvidence``.

    Parameters
    ----------
    name, key : str
        The site in sentences, and in tables.
    predicted : Int[Tensor, "row"]
        Index of the likeliest class, given the classes' shares.
    even : Int[Tensor, "row"]
        The same if all classes count alike; recall is measured by it.
    hit : Float[Tensor, "row"]
        1 where ``predicted`` is right.
    accuracy, se : float
        Share of right answers and its standard error over groups.
    eta2 : float
        Share of the variance that lies between classes, over all labelled rows.
    """

    name: str
    key: str
    predicted: Int[Tensor, "row"]
    even: Int[Tensor, "row"]
    hit: Float[Tensor, "row"]
    accuracy: float
    se: float
    eta2: float


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """Labels of the sampled rows, and the held-out answers of each site.

    Parameters
    ----------
    names : tuple of str
        Classes that have enough rows, in order of their numbers.
    numbers : tuple of int
        Their class numbers.
    counts : tuple of int
        Rows (groups) of each.
    small : dict of str to int
        Classes that were left out, with their rows (groups).
    truth : Int[Tensor, "row"]
        Index into ``names`` of each evaluated row.
    where : Int[Tensor, "row"]
        Where the evaluated rows stand among the shared rows.
    shared : SharedRows
    sites : tuple of SiteLabels
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    counts: tuple[int, ...]
    small: dict[str, int]
    truth: Int[Tensor, "row"]
    where: Int[Tensor, "row"]
    shared: SharedRows
    sites: tuple[SiteLabels, ...]

    @property
    def n_rows(self) -> int:
        """Number of evaluated rows."""
        return len(self.truth)

    @cached_property
    def group(self) -> Int[Tensor, "row"]:
        """Group of each evaluated row."""
        return self.shared.group[self.where]

    @cached_property
    def n_groups(self) -> int:
        """Number of groups among the evaluated rows."""
        return len(torch.unique(self.group))

    @property
    def majority(self) -> float:
        """Fraction of the largest class among the evaluated rows."""
        return float(torch.bincount(self.truth).max()) / max(self.n_rows, 1)

    @cached_property
    def best(self) -> int:
        """Index of the site of highest accuracy; the last one in a tie."""
        return best_site([s.accuracy for s in self.sites])

    def x(self, site: int) -> Float[Tensor, "row dim"]:
        """Return the evaluated rows at a site."""
        return self.shared.x(site)[self.where]


def best_site(accuracy: list[float]) -> int:
    """Return the index of the highest accuracy, the last one in a tie."""
    return max(range(len(accuracy)), key=lambda i: (accuracy[i], i))


def class_counts(data: DataEvidence) -> dict[int, int]:
    """Return the number of rows of each class, or of groups if rows come in groups."""
    groups: dict[int, set[Any]] = {}
    for i, label in enumerate(data.label.tolist()):
        if label >= 0:
            groups.setdefault(label, set()).add(data.group_keys[i] if data.grouped else i)
    return {label: len(groups_of) for label, groups_of in sorted(groups.items())}


def class_name(data: DataEvidence, number: int) -> str:
    """Return the name of a class."""
    names = data.label_names
    return names[number] if names is not None and number < len(names) else str(number)


def second_class(evidence: Evidence) -> int | str:
    """Return the rows or groups of the second largest class, or the reason for none."""
    if not (evidence.data.has_labels and evidence.sites) or evidence.sites[0].classes is None:
        return "the data have no labels"
    answered = answered_labels(shared_rows(evidence))
    if answered is None or not bool((answered >= 0).any()):
        return "no labelled row has finite states and answers"
    counts = sorted(class_counts(evidence.data).values())
    return counts[-2] if len(counts) > 1 else "all labelled rows have one class"


def usable(evidence: Evidence) -> bool:
    """Return whether two classes have enough rows for rules about labels."""
    second = second_class(evidence)
    return isinstance(second, int) and second >= LEAST_ROWS


def blocked(rule: Rule, evidence: Evidence) -> Check | None:
    """Return the withheld check of a rule about labels, or None if it can judge."""
    second = second_class(evidence)
    if isinstance(second, str):
        return rule.not_applicable(second)
    if second < LEAST_ROWS:
        return too_few(rule, second, LEAST_ROWS, f"{counted_as(evidence)} in each of two classes")
    return None


class LabelRule(Rule):
    """A rule about labels; it applies if two classes have enough rows."""

    def check(self, evidence: Evidence) -> Check:
        """Judge the labels, or report what is missing."""
        return blocked(self, evidence) or self.judged(evidence, label_evidence(evidence))

    @abstractmethod
    def judged(self, evidence: Evidence, found: LabelEvidence) -> Check:
        """Return the check of these labels."""


@once
def label_evidence(evidence: Evidence) -> LabelEvidence:
    """Return the held-out answers at every site. Call ``usable`` first."""
    counts = class_counts(evidence.data)
    numbers = [c for c, n in counts.items() if n >= LEAST_ROWS]
    shared = shared_rows(evidence)
    label = answered_labels(shared)
    assert label is not None
    kept = torch.isin(label, torch.tensor(numbers))
    where = torch.nonzero(kept).flatten()
    truth = torch.searchsorted(torch.tensor(numbers), label[where])
    sites = tuple(
        _site(site, shared, i, label, where, truth, torch.tensor(numbers))
        for i, site in enumerate(evidence.sites)
    )
    return LabelEvidence(
        names=tuple(class_name(evidence.data, c) for c in numbers),
        numbers=tuple(numbers),
        counts=tuple(counts[c] for c in numbers),
        small={class_name(evidence.data, c): n for c, n in counts.items() if n < LEAST_ROWS},
        truth=truth,
        where=where,
        shared=shared,
        sites=sites,
    )


def answered_labels(shared: SharedRows) -> Int[Tensor, "shared"] | None:
    """Return the labels of the shared rows, -1 if the model's answer contains NaN or infinity.

    Such an answer is wrong, and counted as wrong; it says nothing about the class of the row.
    """
    label, logits = shared.column("label"), shared.column("logits")
    if label is None or logits is None:
        return label
    return torch.where(torch.isfinite(logits).flatten(1).all(1), label, -1)


def _site(
    site: SiteEvidence,
    shared: SharedRows,
    i: int,
    label: Int[Tensor, "shared"],
    where: Int[Tensor, "row"],
    truth: Int[Tensor, "row"],
    numbers: Int[Tensor, "class"],
) -> SiteLabels:
    whole = site.sample.is_everything or not shared.evidence.data.grouped
    every = site.classes if whole else None
    even, odds = held_out_scores(
        shared.x(i), label, shared.group, numbers, every=every, wide=site.is_wide
    )
    even, predicted = even[where].argmax(1), (even + odds)[where].argmax(1)
    hit = (predicted == truth).double()
    group = shared.group[where]
    se = group_error(hit / max(len(hit), 1), group, len(torch.unique(group)))
    assert site.classes is not None
    return SiteLabels(
        name=site.name,
        key=site.schema.key,
        predicted=predicted,
        even=even,
        hit=hit,
        accuracy=float(hit.mean()),
        se=se,
        eta2=eta_squared(site.classes),
    )


def eta_squared(classes: ClassMomentsState) -> float:
    """Return the fraction of the variance of labelled rows that lies between classes."""
    within = classes.pooled
    inside = float(within.sum() if within.ndim == 1 else within.diagonal().sum())
    between = float((classes.weight[:, None] * (classes.mean - classes.grand_mean).square()).sum())
    return between / (between + inside) if between + inside > 0 else 0.0


def recalls(found: LabelEvidence, site: int, level: float) -> list[tuple[float, float, float, int]]:
    """Return each class's recall with equal class weights, Wilson bounds, and groups.

    Rows of one group count as one in the bounds.
    """
    even, out = found.sites[site].even, []
    for k in range(len(found.names)):
        of_class = found.truth == k
        n = len(torch.unique(found.group[of_class]))
        if n == 0:
            out.append((math.nan, 0.0, 1.0, 0))
            continue
        recall = float((even[of_class] == k).double().mean())
        low, high = wilson(round(recall * n), n, 1 - 2 * level)
        out.append((recall, low, high, n))
    return out


def confusions(found: LabelEvidence, site: int) -> list[tuple[int, int, int, float]]:
    """Return (class, predicted class, rows, fraction of the class), most frequent first."""
    k = len(found.names)
    table = torch.bincount(found.truth * k + found.sites[site].even, minlength=k * k).reshape(k, k)
    sizes = table.sum(1)
    pairs = [
        (a, b, int(table[a, b]), float(table[a, b]) / max(int(sizes[a]), 1))
        for a in range(k)
        for b in range(k)
        if a != b and int(table[a, b]) > 0
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


@dataclass(frozen=True)
class PairedTest:
    """A site against the site of the highest accuracy, on the same rows and folds.

    Parameters
    ----------
    gains, losses : int
        Groups (rows, if each is its own group) that the best site predicts better, and worse.
    p : float
        Probability of as many gains if both sites are equally good, adjusted for the number of
        sites (Holm); 1 for the best site. The best site is chosen on the same rows, so p is a
        little too small.
    """

    gains: int
    losses: int
    p: float


def against_best(found: LabelEvidence) -> list[PairedTest]:
    """Return a paired test of each site against the best one: sign tests over groups."""
    best = found.sites[found.best].hit
    pairs = [gains_and_losses(best - site.hit, found.group) for site in found.sites]
    others = [i for i in range(len(pairs)) if i != found.best]
    p = torch.ones(len(pairs), dtype=torch.float64)
    if others:
        raw = torch.tensor([sign_test(*pairs[i]) for i in others], dtype=torch.float64)
        p[others] = adjusted_p(raw).double()
    return [PairedTest(*pair, float(value)) for pair, value in zip(pairs, p, strict=True)]


def labels_section(evidence: Evidence, column: str | None = None) -> dict[str, Any] | None:
    """Return the report's section on labels, or None if the labels cannot be judged."""
    if not usable(evidence):
        return None
    labels = label_evidence(evidence)
    per_class = {
        name: {"label": name, "n": n, "recall": recall, "low": low, "high": high}
        for name, n, (recall, low, high, _) in zip(
            labels.names, labels.counts, recalls(labels, labels.best, 0.025), strict=True
        )
    } | {
        name: {"label": name, "n": n, "recall": None, "low": None, "high": None}
        for name, n in labels.small.items()
    }
    for row in per_class.values():
        if row["recall"] is not None and math.isnan(row["recall"]):
            row |= {"recall": None, "low": None, "high": None}
    return {
        "column": column,
        "n_rows": labels.n_rows,
        "classes": [per_class[name] for name in sorted(per_class)][:200],
        "sites": [{"site": s.key, "value": s.accuracy, "se": s.se} for s in labels.sites],
        "paired": [
            {"site": s.key, "gains": t.gains, "losses": t.losses, "p": t.p}
            for s, t in zip(labels.sites, against_best(labels), strict=True)
        ],
        "majority": labels.majority,
        "best": labels.sites[labels.best].key,
        "confusions": [
            {"label": labels.names[a], "predicted": labels.names[b], "n": n, "share": share}
            for a, b, n, share in confusions(labels, labels.best)[:50]
        ],
    }
