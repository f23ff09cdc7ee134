"""Labels in the order in which to check them, and the reliability of that order.

A planted check on the same rows says how many wrong labels the list would show.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.paired_gains import gains_and_losses, sign_test
from sonde.findings.evidence.answers.answers import answer_columns, probabilities
from sonde.findings.evidence.answers.class_support import class_support
from sonde.findings.evidence.answers.labels import LabelEvidence, label_evidence, usable
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import EXAMPLES, examples_at, ids_at
from sonde.metrics import WrongLabels, wrong_labels
from sonde.stats.linear_classifiers import held_out_scores

LISTED: Final = 50
PLANTED: Final = 0.03
LEAST_PLANTED: Final = 20
FLOOR: Final = 0.02
"""Probability that is spread over all classes before logarithms are taken."""
LIKELY: Final = 0.5
"""Expected fraction of wrong labels among the rows listed first, for their number to be used."""
LEARNED: Final = 0.995
"""Training accuracy above which the model may have memorised wrong labels."""
WORSE: Final = 0.05
"""Level at which the model's answers count as worse than the probe's."""


@dataclass(frozen=True, eq=False)
class Doubts:
    """Evidence against the label of each evaluated row.

    Parameters
    ----------
    named : Int[Tensor, "row"]
        The class with the most support, apart from the label.
    doubt : Float[Tensor, "row"]
        What the label lacks of full support, if another class has more support than the label; else
        minus the support of the label. In [-1, 1]; above 0 another class is likelier. Support is
        the mean of the held-out probability of the probe and of the share of the nearest rows; if
        the model's own answers are known, the geometric mean of this and of the model's
        probability, so that a class that either of them rules out has little support.
    """

    named: Int[Tensor, "row"]
    doubt: Float[Tensor, "row"]


@dataclass(frozen=True, eq=False)
class SuspectLabels:
    """Rows whose label is doubtful, the most doubtful first.

    Parameters
    ----------
    row : Int[Tensor, "suspect"]
        Indices into the evaluated rows.
    doubts : Doubts
        Of all evaluated rows.
    planted, found : int
        How many labels were exchanged for a check, and how many of these stood among the first
        rows of the list, as many as were exchanged and doubtful together. 0 if the model gives
        99.5 % of the rows their label: it may have learned wrong ones, and labels that it did not
        learn say nothing of these.
    count : WrongLabels
        Estimated number of wrong labels, from states alone: a model that was trained on these rows
        may have learned their wrong labels.
    """

    row: Int[Tensor, "suspect"]
    doubts: Doubts
    planted: int
    found: int
    count: WrongLabels


@dataclass(frozen=True, eq=False)
class OneWay:
    """A class whose rows are labelled as another class far more often than the reverse.

    Parameters
    ----------
    of, called : int
        Indices of the class that the rows look like, and of the label that they have.
    rows : Int[Tensor, "row"]
        Evaluated rows that look like ``of`` but are labelled ``called``; the clearest first.
    share, back : float
        Share of label ``called`` among rows that look like ``of``; and the reverse. Only these two
        labels count.
    p : float
    """

    of: int
    called: int
    rows: Int[Tensor, "row"]
    share: float
    back: float
    p: float


@once
def suspect_labels(evidence: Evidence) -> SuspectLabels:
    """Return the rows to check first, with a planted test. Call ``labels.usable`` first."""
    labels, way = label_evidence(evidence), one_way(evidence)
    learned = labels.truth.clone()
    if way is not None:  # labels that are often wrong teach the probe that they are right
        learned[way.rows] = way.of
    own, sites = model_support(evidence, labels), _asked_sites(labels)
    supports = [
        class_support(_true_scores(evidence)[site], labels.x(site), labels.truth, labels.group)
        for site in sites
    ]
    at_best = supports[sites.index(labels.best)]
    doubts = _doubts(at_best if way is None else _refitted(evidence, learned), own, labels.truth)
    n, likely = labels.n_rows, doubts.doubt > 0
    draw = torch.Generator().manual_seed(evidence.data.seed)
    order = torch.randperm(n, generator=draw)
    order = order[~likely[order]]
    planted = order[: max(LEAST_PLANTED, round(PLANTED * n))]
    row = torch.nonzero(likely).flatten()
    row = row[torch.argsort(doubts.doubt[row], descending=True, stable=True)]
    learned_all = own is not None and _share_right(own, labels.truth) > LEARNED
    count = _count(labels, supports)
    if learned_all or (own is not None and _share_right(own, labels.truth) > 1 - count.low / n):
        # The model gives more rows their label than can have a right one.
        doubts = Doubts(count.named, 2 * count.probability - 1) if count.low > 0 else doubts
        row = count.order[: int((doubts.doubt > 0).sum())] if count.low > 0 else row
        return SuspectLabels(row, doubts, 0, 0, count)
    if len(planted) < LEAST_PLANTED:
        return SuspectLabels(row, doubts, 0, 0, count)
    label, learned = labels.truth.clone(), learned.clone()
    label[planted] = learned[planted] = doubts.named[planted]
    again = _doubts(_refitted(evidence, learned), own, label).doubt
    # The rows that were doubtful before compete too: without them every exchanged label is found.
    first = torch.argsort(again, descending=True, stable=True)[: len(planted) + len(row)]
    n_found = int(torch.isin(first, planted).sum())
    return SuspectLabels(row, doubts, len(planted), n_found, count)


def _asked_sites(found: LabelEvidence) -> list[int]:
    """Return the first site, the middle one and the best.

    States of late layers can hold the labels that the model has learned, wrong ones too; early
    ones hold fewer of them.
    """
    return sorted({0, len(found.sites) // 2, found.best})


def _count(found: LabelEvidence, supports: list[Float[Tensor, "row class"]]) -> WrongLabels:
    """Return the number of wrong labels at the site that shows most of them for certain."""
    counts = [wrong_labels(p, found.truth, found.group.tolist()) for p in supports]
    return max(counts, key=lambda count: (count.precision >= LIKELY, count.low, count.number))


def _share_right(p: Float[Tensor, "row class"], truth: Int[Tensor, "row"]) -> float:
    return float((p.argmax(1) == truth).double().mean())


def model_support(evidence: Evidence, found: LabelEvidence) -> Float[Tensor, "row class"] | None:
    """Return the model's probabilities of classes with enough rows, or None if not known."""
    columns, number = answer_columns(evidence), torch.tensor(found.numbers)
    if isinstance(columns, str) or int(number.max()) >= columns[0].shape[1]:
        return None
    p = probabilities(columns[0][found.where].double()).nan_to_num(0.0)[:, number]
    return p / p.sum(1, keepdim=True).clamp(min=1e-12)


@once
def _true_scores(evidence: Evidence) -> dict[int, Float[Tensor, "row class"]]:
    """Return the held-out log-odds at the asked sites, learned from the labels as given."""
    labels = label_evidence(evidence)
    return {site: _log_odds(evidence, labels.truth, site) for site in _asked_sites(labels)}


def _log_odds(
    evidence: Evidence, label: Int[Tensor, "row"], site: int
) -> Float[Tensor, "row class"]:
    """Return each row's held-out log-odds of each class at a site, learned from these labels."""
    labels, wide = label_evidence(evidence), evidence.sites[site].is_wide
    classes = torch.arange(len(labels.names))
    even, odds = held_out_scores(labels.x(site), label, labels.group, classes, wide=wide)
    return even + odds


def _refitted(evidence: Evidence, learned: Int[Tensor, "row"]) -> Float[Tensor, "row class"]:
    """Return the support of each class by states of the best site, learned from these labels."""
    labels = label_evidence(evidence)
    log_odds = _log_odds(evidence, learned, labels.best)
    return class_support(log_odds, labels.x(labels.best), learned, labels.group)


def _doubts(
    states: Float[Tensor, "row class"],
    model: Float[Tensor, "row class"] | None,
    label: Int[Tensor, "row"],
) -> Doubts:
    """Return the doubt about each label, from the states and the model's answers, if known."""
    support = states if model is None else _joined(states, model)
    own = support.gather(1, label[:, None])[:, 0]
    other = support.scatter(1, label[:, None], -1.0)
    best, named = other.max(1)
    return Doubts(named, torch.where(best > own, 1 - own, -own))


def _joined(
    one: Float[Tensor, "row class"], two: Float[Tensor, "row class"]
) -> Float[Tensor, "row class"]:
    """Return the normalised geometric mean of two class probabilities."""
    n = one.shape[1]
    logs = [((1 - FLOOR) * p + FLOOR / n).log() for p in (one, two)]
    return ((logs[0] + logs[1]) / 2).softmax(1)


@once
def one_way(evidence: Evidence) -> OneWay | None:
    """Return the most significant pair of classes mislabelled in one direction, or None.

    Rows that look like the first class and have the label of the second are about as typical of
    the first class as its own rows, and errors in the opposite direction are at most 0.6 times as
    frequent. Both hold on each half of the groups. Rows look like the class that a held-out probe
    gives them; if this shows nothing and the model itself is not clearly less accurate than the
    probe, which learns from wrong labels, like the class that the model gives them, where the
    probe does not give most of them their label.
    Ask ``labels.usable`` first.
    """
    labels = label_evidence(evidence)
    score = _true_scores(evidence)[labels.best]
    half = torch.remainder(labels.group // 4, 2) == 0
    way = _surest(score, labels.truth, half, labels.group)
    own = model_support(evidence, labels)
    if way is not None or own is None:
        return way
    if _is_worse(own, score, labels.truth, labels.group):
        return None
    way = _surest(own.clamp(min=1e-12).log(), labels.truth, half, labels.group)
    if way is None:
        return None
    agrees = score[way.rows, way.of] > score[way.rows, way.called]
    return way if float(agrees.double().mean()) > 0.5 else None


def _is_worse(
    one: Float[Tensor, "row class"],
    other: Float[Tensor, "row class"],
    truth: Int[Tensor, "row"],
    group: Int[Tensor, "row"],
) -> bool:
    """Return whether one scorer matches significantly fewer labels (sign test of groups, 5 %)."""
    right = [(p.argmax(1) == truth).double() for p in (one, other)]
    return sign_test(*gains_and_losses(right[1] - right[0], group)) < WORSE


def _surest(
    score: Float[Tensor, "row class"],
    truth: Int[Tensor, "row"],
    half: Tensor,
    group: Int[Tensor, "row"],
) -> OneWay | None:
    """Return the most significant pair by these class log-odds."""
    likeliest, names = score.argmax(1), range(score.shape[1])
    pairs = [(a, b) for a in names for b in names if a != b]
    tested = [_pair(score, likeliest, truth, a, b, half, group) for a, b in pairs]
    kept = [pair for pair in tested if pair is not None and pair.p * len(pairs) < 0.001]
    return min(kept, key=lambda pair: pair.p, default=None)


def _pair(
    score: Float[Tensor, "row class"],
    said: Int[Tensor, "row"],
    truth: Int[Tensor, "row"],
    of: int,
    called: int,
    half: Tensor,
    group: Int[Tensor, "row"],
) -> OneWay | None:
    wrong, own = (said == of) & (truth == called), (said == of) & (truth == of)
    if min(len(torch.unique(group[rows])) for rows in (wrong, own)) < 10:
        return None
    back, kept = (said == called) & (truth == of), (said == called) & (truth == called)
    margin = score[:, of] - score[:, called]
    for part in (half, ~half):
        n_wrong, n_own = int((wrong & part).sum()), int((own & part).sum())
        n_back, n_kept = int((back & part).sum()), int((kept & part).sum())
        if min(n_wrong, n_own, n_kept) < 5:
            return None
        share, opposite = n_wrong / (n_wrong + n_own), n_back / (n_back + n_kept)
        if share < 0.2 or opposite > 0.6 * share:
            return None
        if float(margin[wrong & part].median()) < 0.75 * float(margin[own & part].median()):
            return None
    n, n_back = int(wrong.sum()), int(back.sum())
    rows = torch.nonzero(wrong).flatten()
    rows = rows[torch.argsort(margin[rows], descending=True, stable=True)]
    share = n / (n + int(own.sum()))
    opposite = n_back / max(1, n_back + int(kept.sum()))
    clear = _clear(margin, wrong, own, group), _clear(-margin, back, kept, group)
    return OneWay(of, called, rows, share, opposite, sign_test(*clear))


def _clear(
    margin: Float[Tensor, "row"], wrong: Tensor, own: Tensor, group: Int[Tensor, "row"]
) -> int:
    """Return how many groups of wrong rows exceed the 5 % margin quantile of a class's own rows.

    Rows between two classes do not count: they are classified either way by chance. Rows of a
    group, such as copies, count as one.
    """
    is_clear = margin[wrong] >= torch.quantile(margin[own], 0.05)
    return len(torch.unique(group[wrong][is_clear]))


def suspects_section(evidence: Evidence) -> dict[str, Any] | None:
    """Return the report's list of rows to check first, or None without usable labels."""
    if not usable(evidence):
        return None
    suspects, labels = suspect_labels(evidence), label_evidence(evidence)
    row = suspects.row[:LISTED]
    shared = labels.where[row].tolist()
    ids = ids_at(evidence, shared)
    rows = [
        {
            "id": ids[i],
            EXAMPLES: examples_at(evidence, shared[i : i + 1]),
            "label": labels.names[int(labels.truth[row[i]])],
            "predicted": labels.names[int(suspects.doubts.named[row[i]])],
            "share": float(suspects.doubts.doubt[row[i]]),
        }
        for i in range(len(row))
    ]
    return {
        "rows": rows,
        "planted": suspects.planted,
        "found": suspects.found,
        "n": len(suspects.row),
        "wrong": {
            "number": suspects.count.number,
            "low": suspects.count.low,
            "high": suspects.count.high,
            "precision": suspects.count.precision,
            "n_rows": labels.n_rows,
        },
    }


def doubts_of(evidence: Evidence) -> dict[int, float]:
    """Return the doubt about the label of each evaluated example, by planned order."""
    if not usable(evidence):
        return {}
    labels, doubt = label_evidence(evidence), suspect_labels(evidence).doubts.doubt
    examples = examples_at(evidence, labels.where.tolist())
    return dict(zip(examples, doubt.tolist(), strict=False))
