"""The report's section on a model that returns vectors: what can be judged without labels.

Not for classifiers or language models: their answers are judged by labels or next tokens.
"""

from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.random_state import kept_random_state
from sonde.findings.evidence.inputs.unusual_rows import (
    FAR_Z,
    NEAR_NEEDS,
    copies,
    far_scores,
    near_duplicates,
)
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.stats.intervals import wilson
from sonde.tap import LiveStream

LEAST: Final = 20
CLUSTER_UNITS: Final = 10


def vectors_section(evidence: Evidence, stream: Any) -> dict[str, Any] | None:
    """Return the report's section on vector outputs; None for other models.

    Such a model names the site of its answer (``Model.sites``).
    """
    answered = stream.model.sites if isinstance(stream, LiveStream) else ()
    at = next((i for i, s in enumerate(evidence.sites) if s.name in answered), None)
    if at is None:
        return None
    site, x = evidence.sites[at], shared_rows(evidence).x(at)
    if len(x) < LEAST:
        return None
    z, _ = far_scores(evidence)
    n_clusters, n_clustered = clusters(x)
    near = near_duplicates(evidence)
    return {
        "site": site.schema.key,
        "dim": site.dim,
        "pooling": stream.model.reducer,
        "n_rows": len(x),
        "mean_cosine": mean_cosine(x),
        "dimensions": dimensions(x),
        "n_copies": copies(evidence.data).n_extra,
        "n_near": None if len(x) < NEAR_NEEDS else sum(len(pairs.row) for pairs in near.values()),
        "n_far": int(((z >= FAR_Z) & torch.isfinite(z)).sum()),
        "n_clusters": n_clusters,
        "n_clustered": n_clustered,
        "neighbours": _neighbours_of_labelled(evidence, x),
    }


def _neighbours_of_labelled(
    evidence: Evidence, x: Float[Tensor, "row dim"]
) -> dict[str, Any] | None:
    """Return how often a labelled row's nearest other row has its label; None without labels."""
    shared = shared_rows(evidence)
    label = shared.column("label") if evidence.data.has_labels else None
    if label is None:
        return None
    is_labelled = label >= 0
    counted = same_label(x[is_labelled], label[is_labelled], shared.group[is_labelled])
    if counted is None:
        return None
    n_same, n, chance = counted
    low, high = wilson(n_same, n)
    return {"n_rows": n, "same": n_same / n, "low": low, "high": high, "chance": chance}


def same_label(
    x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], group: Int[Tensor, "row"]
) -> tuple[int, int, float] | None:
    """Return for how many rows the nearest row of another group has the same label.

    Nearest is by the cosine. Unlike a probe it needs no training, so a few labels suffice.

    Returns
    -------
    tuple of (int, int, float) or None
        Such rows, all rows that have a row of another group, and the mean fraction of equal labels
        among these other rows. None if the labels are all equal or no row has another one.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0], [1.0, 0.2]])
    >>> same_label(x, torch.tensor([0, 0, 1, 1, 1]), torch.arange(5))
    (4, 5, 0.4)
    """
    other = group[:, None] != group[None]
    has_other = other.any(1)
    if len(torch.unique(label)) < 2 or not bool(has_other.any()):
        return None
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    cosine = (unit @ unit.T).masked_fill(~other, -torch.inf)
    same = label[:, None] == label[None]
    hit = same.gather(1, cosine.argmax(1, keepdim=True))[:, 0]
    chance = (same & other).sum(1)[has_other].double() / other.sum(1)[has_other]
    return int(hit[has_other].sum()), int(has_other.sum()), float(chance.mean())


def mean_cosine(x: Float[Tensor, "row dim"]) -> float:
    """Return the mean cosine of two different rows: 0 if directions are uniform.

    Examples
    --------
    >>> round(mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]).double()), 4)
    0.4714
    """
    unit = torch.nn.functional.normalize(x, dim=1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def dimensions(x: Float[Tensor, "row dim"]) -> float:
    """Return the participation ratio of the centred rows, their effective dimension."""
    variance = torch.linalg.svdvals(x - x.mean(0)).square()
    return float(variance.sum().square() / variance.square().sum())


def clusters(x: Float[Tensor, "row dim"]) -> tuple[int, int]:
    """Return the number of dense clusters and how many rows lie in one (HDBSCAN).

    Rows are brought to their first ten principal directions; a cluster has at least a fiftieth of
    the rows, and ten.
    """
    with kept_random_state():
        from sklearn.cluster import HDBSCAN

    x = x - x.mean(0)
    basis = torch.linalg.svd(x, full_matrices=False).Vh[:CLUSTER_UNITS]
    least = max(10, len(x) // 50)
    kind: Any = HDBSCAN  # its annotation of copy is wrong
    labels = kind(min_cluster_size=least, copy=True).fit_predict((x @ basis.T).numpy())
    return int(labels.max()) + 1, int((labels >= 0).sum())
