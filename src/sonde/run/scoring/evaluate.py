"""Evaluate tables of scores of in-distribution and outlying rows, with confidence intervals."""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError
from sonde.core.renaming import renamed
from sonde.metrics import Metric, aupr, auroc, fpr_at_tpr
from sonde.run.scoring.tables import checked, keys_of, part_of, scores_of
from sonde.stats.intervals import grouped_share

RESAMPLES = 1000


@renamed(in_distribution="usual", out_of_distribution="unusual")
def evaluate(
    in_distribution: pa.Table,
    out_of_distribution: pa.Table,
    *,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return how well each detector at each site separates the rows of two tables of scores.

    Parameters
    ----------
    in_distribution : pyarrow.Table
        Table of ``sonde.score`` for in-distribution rows. Rows of one id are resampled together.
    out_of_distribution : pyarrow.Table
        Table of ``sonde.score`` for out-of-distribution rows, scored by the same detectors.
    alpha : float, default=0.05
        False-alarm rate at which the detectors are set; figures about it need a calibration.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.

    Returns
    -------
    list of dict
        For each instrument and site ``n_usual n_unusual``, ``auroc aupr aupr_usual
        fpr_at_95tpr_unusual fpr_at_95tpr_usual`` each with ``_low`` and ``_high``, and
        ``false_alarms`` with its interval, exact if every row has an id of its own, and ``found``,
        the share of unusual rows with an alarm.

    Raises
    ------
    InputError
        If the two tables have no instrument and site in common, or a column holds no numbers.
    """
    if not 0 < alpha < 1:
        raise InputError(f"evaluate: expected alpha in (0, 1), got {alpha}.")
    return [
        {"instrument": k[0], "site": k[1], **_separation_figures(a, b, alpha, resamples, seed)}
        for k, a, b in pairs_of(in_distribution, out_of_distribution)
    ]


def pairs_of(
    usual: pa.Table, unusual: pa.Table
) -> list[tuple[tuple[str, str], pa.Table, pa.Table]]:
    """Return the rows of each instrument and site that both tables have.

    Raises
    ------
    InputError
        If the tables have no instrument and site in common.
    """
    usual, unusual = (
        checked(usual, "the usual rows"),
        checked(unusual, "the unusual rows"),
    )
    names = set(keys_of(unusual))
    both = [(k, part_of(usual, k), part_of(unusual, k)) for k in keys_of(usual) if k in names]
    if not both:
        raise InputError(
            "evaluate: the two tables have no detector at one site in common. Score both with the "
            "same file."
        )
    return both


def _separation_figures(
    usual: pa.Table, unusual: pa.Table, alpha: float, resamples: int, seed: int
) -> dict[str, Any]:
    scores = np.concatenate([scores_of(usual), scores_of(unusual)])
    truth = np.r_[np.zeros(usual.num_rows), np.ones(unusual.num_rows)]
    group = groups_of(usual, unusual)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    metrics = {
        "auroc": auroc(scores, truth, group, **options),
        "aupr": aupr(scores, truth, group, **options),
        "aupr_usual": aupr(scores, truth, group, positive="usual", **options),
        "fpr_at_95tpr_unusual": fpr_at_tpr(scores, truth, group, **options),
        "fpr_at_95tpr_usual": fpr_at_tpr(scores, truth, group, positive="usual", **options),
    }
    row: dict[str, Any] = {"n_usual": usual.num_rows, "n_unusual": unusual.num_rows}
    for name, metric in metrics.items():
        row |= ends(name, metric)
    return row | _alarms(usual, unusual, alpha)


def groups_of(usual: pa.Table, unusual: pa.Table) -> np.ndarray:
    """Return the group of each row: rows of one table with equal ids form a group."""
    names = [f"usual {i}" for i in usual["id"].to_pylist()]
    names += [f"unusual {i}" for i in unusual["id"].to_pylist()]
    return np.unique(np.array(names), return_inverse=True)[1]


def ends(name: str, metric: Metric) -> dict[str, float | None]:
    """Return an estimate and the ends of its interval; an undefined number is None."""
    values = {name: float(metric.value), f"{name}_low": metric.low, f"{name}_high": metric.high}
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _alarms(usual: pa.Table, unusual: pa.Table, alpha: float) -> dict[str, Any]:
    """Return the fraction of rows of each kind with ``p <= alpha``, or None without calibration."""
    names = ("false_alarms", "false_alarms_low", "false_alarms_high", "found")
    if any("p" not in t.column_names or t["p"].null_count for t in (usual, unusual)):
        return dict.fromkeys(names)
    false = np.array([p <= alpha for p in usual["p"].to_pylist()])
    seen = sum(p <= alpha for p in unusual["p"].to_pylist())
    member = np.unique(np.array(usual["id"].to_pylist(), dtype=str), return_inverse=True)[1]
    low, high = grouped_share(false, member)
    values = (float(false.mean()), low, high, seen / unusual.num_rows)
    return dict(zip(names, values, strict=True))
