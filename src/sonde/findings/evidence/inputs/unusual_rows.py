"""Tables of rows: copies, near copies, outliers, doubtful labels, and a map."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm
from torch import Tensor

from sonde.core.hashing import bytes_key
from sonde.findings.evidence.answers.answers import answer_columns, probabilities
from sonde.findings.evidence.answers.labels import LabelEvidence, class_name, label_evidence, usable
from sonde.findings.evidence.inputs.input_distances import near_in_inputs
from sonde.findings.evidence.inputs.near_pairs import FAR, NearPairs, near_pairs
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.findings.evidence.shared_rows import (
    EXAMPLES,
    SharedRows,
    examples_at,
    ids_at,
    shared_rows,
)
from sonde.stats.neighbours import nearest

MOST_POINTS = 1000


NEIGHBOURS = 10
MOST_SITES = 12
NAMED = 50
FAR_Z = 4.0
NEAR_NEEDS = 100
NEAR_UNITS = 8
OF_TOKENS = frozenset({"pos", "token", "window"})
PARTS = ("tokens", "patches", "patches3", "predictions")


@dataclass(frozen=True, eq=False)
class Copies:
    """Inputs with equal content.

    Parameters
    ----------
    n : int
        Inputs in all; chunks of one input count once.
    n_extra : int
        Inputs that are further copies of another input.
    sets : tuple of tuple of int
        Examples of each content that occurs more than once, largest set first.
    contradicting : tuple of int
        Indices into ``sets``: copies with different labels.
    n_blank : int
        Empty inputs.
    """

    n: int
    n_extra: int
    sets: tuple[tuple[int, ...], ...]
    contradicting: tuple[int, ...]
    n_blank: int


def first_pieces(data: DataEvidence) -> list[int]:
    """Return one example of each input: every example, or the first chunk of each."""
    if data.piece is None:
        return list(range(data.n))
    return torch.nonzero(data.piece == 0).flatten().tolist()


@once
def copies(data: DataEvidence) -> Copies:
    """Return the inputs that occur more than once."""
    by_key: dict[bytes, list[int]] = defaultdict(list)
    items = first_pieces(data)
    for i in items:
        by_key[data.keys[i]].append(i)
    blank = bytes_key(b"")
    sets = sorted((tuple(s) for s in by_key.values() if len(s) > 1), key=lambda s: (-len(s), s[0]))
    label = data.label.tolist()
    split = [j for j, s in enumerate(sets) if len({label[i] for i in s if label[i] >= 0}) > 1]
    return Copies(
        n=len(items),
        n_extra=len(items) - len(by_key),
        sets=tuple(sets),
        contradicting=tuple(split),
        n_blank=len(by_key.get(blank, ())),
    )


def content_groups(evidence: Evidence) -> Int[Tensor, "row"]:
    """Return a number for each shared row, equal for rows of one group or equal content."""
    shared = shared_rows(evidence)
    group, order, seen = shared.group.clone(), shared.order, {}
    if order is None:
        return group
    for i, example in enumerate(order.tolist()):
        group[i] = seen.setdefault(evidence.data.keys[example], int(group[i]))
    return group


@once
def near_duplicates(evidence: Evidence) -> dict[int, NearPairs]:
    """Return near pairs at the first and last site with enough units, by site index.

    Rows of few units can be near because of what their layer does, not because of their inputs.

    If a text's row is its last token, the first block's rows are alike for all texts that end in
    the same few tokens, so only the last site is looked at. There too, texts of one length and
    ending may be alike, so pairs of one length are left out. Otherwise a pair at the first site
    counts if its rows are near at the last site too. Rows that are equal at the last site count if
    they are near at the first: the last site may see a part of the input only. Rows that are near
    at a site, but not equal, count if their inputs are near, where these are vectors.
    """
    shared, group = shared_rows(evidence), content_groups(evidence)
    if len(group) < NEAR_NEEDS or rows_are_parts(evidence):
        return {}
    wide = [i for i, site in enumerate(evidence.sites) if site.dim >= NEAR_UNITS]
    if not wide:
        return {}
    first, last = wide[0], wide[-1]
    lengths = last_token_lengths(shared)
    if lengths is not None:
        return {last: near_pairs(shared.x(last), group, lengths=(lengths, lengths))}
    begin, end = shared.x(first), shared.x(last)
    if first == last:
        return {last: near_in_inputs(evidence, near_pairs(end, group))}
    pairs_at = {
        first: near_pairs(begin, group, elsewhere=(end, end)),
        last: near_pairs(end, group, elsewhere=(begin, begin), equal_alone=True),
    }
    return {site: near_in_inputs(evidence, pairs) for site, pairs in pairs_at.items()}


def rows_are_parts(evidence: Evidence) -> bool:
    """Return whether a row is one token or patch, which many texts or images may share."""
    return any(site.schema.reducer.name in PARTS for site in evidence.sites[:1])


def last_token_lengths(shared: SharedRows) -> Tensor | None:
    """Return the texts' token counts if each row is a last token, else None.

    Zeros if the lengths are not known: then no two texts are known to differ in length.
    """
    site = shared.evidence.sites[0]
    if site.schema.reducer.name != "last" or not OF_TOKENS & {*site.schema.axes.split()}:
        return None
    lengths = shared.column("length")
    return torch.zeros(len(shared.group), dtype=torch.int64) if lengths is None else lengths


@dataclass(frozen=True, eq=False)
class DoubtfulLabels:
    """Rows whose neighbours and classifier agree on a label other than their own.

    Parameters
    ----------
    row, named : Int[Tensor, "row"]
        Indices into the evaluated rows, and the class that the neighbours have.
    share : Float[Tensor, "row"]
        Share of the neighbours with that class.
    n : int
        Rows that were looked at.
    n_clear : int
        Rows that neighbours and probe alone make doubtful, without the model's own answers.
    usual, usual_named : Int[Tensor, "other"]
        Indices of the rows that meet the same criteria with their own label, and this label.
    """

    row: Int[Tensor, "row"]
    named: Int[Tensor, "row"]
    share: Float[Tensor, "row"]
    n: int
    n_clear: int
    usual: Int[Tensor, "other"]
    usual_named: Int[Tensor, "other"]


@once
def doubtful_labels(evidence: Evidence) -> DoubtfulLabels:
    """Return the rows at the best site whose neighbours contradict their label.

    A row counts if no neighbour has its label, nine in ten share another label, and the probe
    agrees with them. If the model itself answers that class as surely as for rows of the class, six
    in ten are enough, and two in ten may have the row's label. Ask ``labels.usable`` first.
    """
    labels = label_evidence(evidence)
    k = min(NEIGHBOURS, labels.n_rows - 1)
    truth = labels.truth
    votes = _votes(labels, labels.best)
    count, named = votes.max(1)
    own = votes.gather(1, truth[:, None])[:, 0]
    agrees = labels.sites[labels.best].predicted == named
    clear = (own == 0) & (count >= 0.9 * k)
    deep = (count >= 0.6 * k) & _model_names(evidence, labels, named)
    clear, likely = clear & agrees, (own <= 0.2 * k) & deep & agrees & (named != truth)
    wrong = clear | likely
    usual = torch.nonzero(((count >= 0.9 * k) | deep) & agrees & (named == truth)).flatten()
    row = torch.nonzero(wrong).flatten()
    share = count[row].double() / k
    row = row[torch.argsort(share, descending=True, stable=True)]
    shares = count[row].double() / k
    return DoubtfulLabels(
        row, named[row], shares, labels.n_rows, int(clear.sum()), usual, truth[usual]
    )


def _votes(labels: LabelEvidence, site: int) -> Int[Tensor, "row class"]:
    """Return how many of each row's nearest rows of other groups have each label."""
    x, k = labels.x(site), min(NEIGHBOURS, labels.n_rows - 1)
    distance, index = nearest(x, x, k, group=labels.group, group2=labels.group)
    label = labels.truth[index].masked_fill(~torch.isfinite(distance), -1)
    votes = torch.nn.functional.one_hot(label.clamp(min=0), len(labels.names))
    return (votes * (label >= 0)[:, :, None]).sum(1)


def chance_of_depth(evidence: Evidence) -> float:
    """Return the p-value of how near doubtful rows lie to the border of the class they resemble.

    A net gathers the rows that it gets wrong among the rows of the class that it answers, so deep
    layers cannot tell a wrong label from a row between two classes. At the first site, a row with
    a wrong label lies as deep among the rows of the named class as its own rows do that meet the
    same criteria; rows between the classes do not. The rank among these rows, averaged over the
    doubtful rows, is half by chance.
    """
    labels, doubt = label_evidence(evidence), doubtful_labels(evidence)
    votes = _votes(labels, 0).double()
    ranks: list[float] = []
    for row, named in zip(doubt.row.tolist(), doubt.named.tolist(), strict=True):
        usual = _margin(votes[doubt.usual[doubt.usual_named == named]], named)
        if len(usual):
            below = usual - _margin(votes[row : row + 1], named)
            ranks.append(float(((below < 0).double() + 0.5 * (below == 0)).mean()))
    if not ranks:
        return 1.0
    return float(norm.cdf((sum(ranks) / len(ranks) - 0.5) * math.sqrt(12 * len(ranks))))


def _margin(votes: Float[Tensor, "row class"], named: int) -> Float[Tensor, "row"]:
    """Return by how many neighbours a class leads any other class."""
    others = votes.clone()
    others[:, named] = -1
    return votes[:, named] - others.amax(1)


def _model_names(
    evidence: Evidence, found: LabelEvidence, named: Int[Tensor, "row"]
) -> Bool[Tensor, "row"]:
    """Return whether the model predicts ``named`` as confidently as for rows of that class.

    False for all rows if the model's own answers are not known.
    """
    columns, number = answer_columns(evidence), torch.tensor(found.numbers)
    if isinstance(columns, str) or int(number.max()) >= columns[0].shape[1]:
        return torch.zeros(len(named), dtype=torch.bool)
    p = probabilities(columns[0][found.where].double()).nan_to_num(0.0)
    own = p.gather(1, number[found.truth][:, None])[:, 0]
    usual = torch.stack([own[found.truth == k].mean() for k in range(len(number))])
    sure = p.gather(1, number[named][:, None])[:, 0] >= usual[named]
    return sure & (p.argmax(1) == number[named])


def spread_sites(n: int, at_most: int = MOST_SITES) -> list[int]:
    """Return the indices of at most ``at_most`` evenly spaced sites, including both ends."""
    if n <= at_most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (at_most - 1)) for i in range(at_most)})


def far_scores(evidence: Evidence) -> tuple[Float[Tensor, "row"], Int[Tensor, "row"]]:
    """Return each row's largest robust z of log distance to its 5th neighbour, and the site.

    The distance is judged against its median and median deviation over rows, site by site.
    """
    shared = shared_rows(evidence)
    best = torch.full((len(shared.group),), -math.inf, dtype=torch.float64)
    where = torch.zeros(len(best), dtype=torch.int64)
    if len(best) <= FAR:
        return best, where
    for i in spread_sites(len(evidence.sites)):
        x = shared.x(i)
        distance, _ = nearest(x, x, FAR, group=shared.group, group2=shared.group)
        z = _robust(distance[:, -1])
        where[z > best] = i
        best = torch.maximum(best, z)
    return best, where


def _robust(distance: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    logs = distance.clamp(min=torch.finfo(torch.float64).tiny).log()
    usable = torch.isfinite(logs) & (distance > 0)
    out = torch.full_like(logs, -math.inf)
    if int(usable.sum()) < 2:
        return out
    middle = logs[usable].median()
    spread = 1.4826 * (logs[usable] - middle).abs().median()
    if float(spread) > 0:
        out[usable] = (logs[usable] - middle) / spread
    return out


def rows_section(evidence: Evidence) -> dict[str, Any]:
    """Return the report's section on rows: ids and examples, but no inputs."""
    return {
        "mislabelled": _mislabelled(evidence),
        "far": _far(evidence),
        "duplicates": _duplicates(evidence.data),
        "near_duplicates": _near(evidence),
        "map": row_map(evidence),
    }


def doubtful_rows(evidence: Evidence) -> list[int]:
    """Return the shared rows whose label is probably wrong."""
    return label_evidence(evidence).where[doubtful_labels(evidence).row].tolist()


def _mislabelled(evidence: Evidence) -> list[dict[str, Any]]:
    if not usable(evidence):
        return []
    labels, doubt = label_evidence(evidence), doubtful_labels(evidence)
    rows = doubtful_rows(evidence)
    ids = ids_at(evidence, rows)
    return [
        {
            "id": ids[i],
            EXAMPLES: examples_at(evidence, rows[i : i + 1]),
            "label": labels.names[int(labels.truth[doubt.row[i]])],
            "predicted": labels.names[int(doubt.named[i])],
            "share": float(doubt.share[i]),
        }
        for i in range(min(NAMED, len(doubt.row)))
    ]


def _far(evidence: Evidence) -> list[dict[str, Any]]:
    z, where = far_scores(evidence)
    order = torch.argsort(z, descending=True, stable=True)[:20].tolist()
    order = [i for i in order if z[i] >= FAR_Z and math.isfinite(z[i])]
    ids = ids_at(evidence, order)
    return [
        {
            "id": name,
            EXAMPLES: examples_at(evidence, [i]),
            "site": evidence.sites[int(where[i])].schema.key,
            "z": round(float(z[i]), 3),
        }
        for name, i in zip(ids, order, strict=True)
    ]


def _duplicates(data: DataEvidence) -> list[dict[str, Any]]:
    duplicates, label = copies(data), data.label.tolist()
    first = [
        *duplicates.contradicting,
        *(set(range(len(duplicates.sets))) - set(duplicates.contradicting)),
    ]
    return [
        {
            "ids": [str(data.ids[i]) for i in duplicates.sets[j][:10]],
            EXAMPLES: list(duplicates.sets[j][:10]),
            "n": len(duplicates.sets[j]),
            "labels": [
                class_name(data, c)
                for c in sorted({label[i] for i in duplicates.sets[j] if label[i] >= 0})[:10]
            ],
        }
        for j in first[:NAMED]
    ]


def _near(evidence: Evidence) -> list[dict[str, Any]]:
    out: dict[frozenset[int], dict[str, Any]] = {}
    for site, pairs in near_duplicates(evidence).items():
        for row, partner, ratio in zip(
            pairs.row.tolist(), pairs.partner.tolist(), pairs.ratio.tolist(), strict=True
        ):
            if frozenset((row, partner)) in out:
                continue
            a, b = ids_at(evidence, (row, partner))
            out[frozenset((row, partner))] = {
                "id": a,
                "id2": b,
                EXAMPLES: examples_at(evidence, (row, partner)),
                "site": evidence.sites[site].schema.key,
                "ratio": float(ratio),
            }
    return sorted(out.values(), key=lambda pair: pair["ratio"])[:NAMED]


def row_map(evidence: Evidence) -> dict[str, Any] | None:
    """Return up to 1,000 rows in two principal components of the most informative site.

    The site at which labels are told best, else the last. Points are marked by class; with OTHER,
    by source and class.
    """
    if not evidence.sites:
        return None
    shared, labelled = shared_rows(evidence), usable(evidence)
    site = label_evidence(evidence).best if labelled else len(evidence.sites) - 1
    x, ids = shared.x(site), ids_at(evidence, range(len(shared.group)))
    label, classes, by = class_names(evidence), None, "label"
    if evidence.versus is not None:
        other = evidence.versus.rows_at(evidence.sites[site].schema.key)
        if other is not None:
            classes, by = label + class_names(evidence.versus.other), "source"
            label = ["DATA"] * len(x) + ["OTHER"] * len(other[0])
            x, ids = torch.cat([x, other[0]]), ids + other[1]
    kept = _thinned(len(x), evidence, len(ids) if by == "source" else 0)
    if len(kept) < 2:
        return None
    points, shares = _two_directions(x[kept])
    return {
        "site": evidence.sites[site].schema.key,
        "axes": shares,
        "by": by,
        "points": [
            {"x": a, "y": b, "id": ids[i], "label": label[i]}
            | ({} if classes is None or not any(classes) else {"class": classes[i]})
            for (a, b), i in zip(points, kept.tolist(), strict=True)
        ],
    }


def class_names(evidence: Evidence) -> list[str | None]:
    """Return the name of each shared row's class, or None for a row without a class."""
    shared = shared_rows(evidence)
    column = shared.column("label")
    if column is None:
        return [None] * len(shared.group)
    return [class_name(evidence.data, c) if c >= 0 else None for c in column.tolist()]


def _thinned(n: int, evidence: Evidence, both: int) -> Int[Tensor, "kept"]:
    """Return the rows with the smallest sampling keys, half from each data set if there are two."""
    if not both:
        return torch.arange(min(n, MOST_POINTS))
    own = len(shared_rows(evidence).group)
    half = MOST_POINTS // 2
    first = min(own, max(half, MOST_POINTS - (n - own)))
    return torch.cat([torch.arange(first), torch.arange(own, min(n, own + MOST_POINTS - first))])


def _two_directions(
    x: Float[Tensor, "row dim"],
) -> tuple[list[tuple[float, float]], list[float]]:
    centred = x - x.mean(0)
    scale = float(centred.abs().max()) or 1.0
    left, singular, _ = torch.linalg.svd(centred / scale, full_matrices=False)
    power = singular.square()
    points = torch.zeros(len(x), 2, dtype=torch.float64)
    used = min(2, len(singular))
    points[:, :used] = left[:, :used] * singular[:used]
    sign = points.gather(0, points.abs().argmax(0, keepdim=True)).sign()
    points = points * torch.where(sign == 0, torch.ones_like(sign), sign)
    total = float(power.sum()) or 1.0
    pairs = [(round(a, 4), round(b, 4)) for a, b in points.tolist()]
    return pairs, [round(float(p) / total, 4) for p in power[:2]]
