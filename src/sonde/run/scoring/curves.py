"""Data for plots of scores: histograms, the ROC curve, the threshold."""

import math
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError
from sonde.metrics import roc
from sonde.run.scoring.evaluate import RESAMPLES, groups_of, pairs_of
from sonde.run.scoring.tables import scores_of

BINS: Final = 40
LONG_TAIL: Final = 50.0
MOST_POINTS: Final = 400


def curves(
    usual: pa.Table,
    unusual: pa.Table,
    *,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the plot data of each detector and site in two tables.

    Parameters
    ----------
    usual, unusual, alpha, resamples, seed
        As in ``evaluate``.

    Returns
    -------
    list of dict
        ``instrument site``; ``histogram`` as ``histogram`` returns it, with ``threshold`` from
        ``threshold_of``; ``roc`` with the points ``fpr tpr`` (at most 400 of them) and the band
        ``grid low high``.
    """
    lines = []
    for (instrument, site), a, b in pairs_of(usual, unusual):
        scores = scores_of(a), scores_of(b)
        bins = histogram(*scores)
        bins["threshold"] = threshold_of([a, b], alpha)
        truth = np.r_[np.zeros(len(scores[0])), np.ones(len(scores[1]))]
        curve = roc_points(np.concatenate(scores), truth, groups_of(a, b), resamples, seed)
        lines.append({"instrument": instrument, "site": site, "histogram": bins, "roc": curve})
    return lines


def histogram(usual: Any, unusual: Any = (), bins: int = BINS) -> dict[str, Any]:
    """Return histograms of both kinds of scores with shared bins.

    If all finite scores are positive and the largest is more than 50 times their median, each bin
    is wider than the last by a constant factor (``log``).

    Returns
    -------
    dict
        ``edges counts_usual counts_unusual log``, and ``beyond_usual beyond_unusual``, the infinite
        scores, which lie in no bin. Without a finite score there are no bins.

    Raises
    ------
    InputError
        If a score is NaN.

    Examples
    --------
    >>> histogram([0.0, 1.0, 1.0], [2.0, float("inf")], bins=2)["counts_usual"]
    [1, 2]
    """
    sides = [np.asarray(values, dtype=np.float64).ravel() for values in (usual, unusual)]
    if any(np.isnan(side).any() for side in sides):
        raise InputError("histogram: expected scores without NaN. Score such rows as +inf.")
    finite = [side[np.isfinite(side)] for side in sides]
    both = np.concatenate(finite)
    log = bool(len(both) and both.min() > 0 and both.max() > LONG_TAIL * np.median(both))
    edges = _edges(both, bins, log)
    counts = [np.histogram(side, edges)[0].tolist() if len(edges) else [] for side in finite]
    beyond = [len(side) - len(kept) for side, kept in zip(sides, finite, strict=True)]
    return {
        "edges": edges.tolist(),
        "counts_usual": counts[0],
        "counts_unusual": counts[1],
        "beyond_usual": beyond[0],
        "beyond_unusual": beyond[1],
        "log": log,
    }


def _edges(values: np.ndarray, bins: int, log: bool) -> np.ndarray:
    if not len(values):
        return values
    low, high = float(values.min()), float(values.max())
    if log:
        edges = np.geomspace(low, high, bins + 1)
        edges[0], edges[-1] = low, high
        return edges
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = max(abs(high), 1.0) / 2
        return np.array([low - room, high + room])
    return np.linspace(low, high, bins + 1)


def roc_points(
    scores: Any, unusual: Any, group: Any, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """Return the ROC curve as lists: all corners, or 400 of them if it has more."""
    curve = roc(scores, unusual, group, resamples=resamples, seed=seed)
    fpr, tpr = curve.fpr.numpy(), curve.tpr.numpy()
    corner = np.ones(len(fpr), dtype=bool)
    across = np.diff(fpr)[:-1] * np.diff(tpr)[1:] - np.diff(fpr)[1:] * np.diff(tpr)[:-1]
    corner[1:-1] = np.abs(across) > 1e-15
    kept = np.flatnonzero(corner)
    if len(kept) > MOST_POINTS:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, MOST_POINTS).round().astype(int))]
    lines = {name: getattr(curve, name).tolist() for name in ("grid", "low", "high")}
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist(), **lines}


def threshold_of(tables: list[pa.Table], alpha: float) -> float | None:
    """Return the highest finite score that raises no alarm at level ``alpha``.

    None if there are no p-values, if every row or no row raises an alarm, or if no single score
    separates rows with an alarm from rows without, e.g. with a threshold for each class.
    """
    if any("p" not in table.column_names for table in tables):
        return None
    rows = [
        (math.inf if s is None else float(s), p)
        for table in tables
        for s, p in zip(table["score"].to_pylist(), table["p"].to_pylist(), strict=True)
    ]
    if any(p is None for _, p in rows):
        return None
    silent = [s for s, p in rows if p > alpha]
    alarms = [s for s, p in rows if p <= alpha]
    if not silent or not alarms or not math.isfinite(max(silent)):
        return None
    return None if min(alarms) <= max(silent) else max(silent)
