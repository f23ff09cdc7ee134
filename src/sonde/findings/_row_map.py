"""Rows of one site along its two main directions."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.findings._shared import ids_at, shared_rows
from sonde.findings.evidence import Evidence
from sonde.findings.labels import class_name, label_evidence, usable

MOST_POINTS = 1000


def row_map(evidence: Evidence) -> dict[str, Any] | None:
    """Return up to 1,000 rows along the two main directions of the site that shows most.

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
    """Return the first rows by draw; if two sources follow one another, half from each."""
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
