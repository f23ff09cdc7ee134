"""Ranking of outlying above in-distribution rows: AUROC, AUPR, FPR at a given TPR.

Rows of equal score are taken in one step everywhere, so no figure depends on the order of rows.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from scipy.special import ndtri
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.keywords import answered
from sonde.core.renaming import renamed
from sonde.metrics._ranked import Ranked, kinds, numbers, require_both, steps
from sonde.metrics.intervals import LEVEL, RESAMPLES, Bootstrap, Metric, measured, members
from sonde.stats.auroc_bounds import auroc_bounds

Positive = Literal["unusual", "usual"]
LEAST_BELOW = 3
"""Groups of positives below a threshold with which the interval at 95 % held .93 of the values."""


@answered()
@renamed(out_of_distribution="unusual")
def auroc(
    scores: Any,
    out_of_distribution: Any,
    group: Any = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the chance that an outlying row outscores an in-distribution row, ties half.

    If every resample separates the two kinds completely, the interval is Newcombe's, from the
    number of groups of either kind: it still has a width.

    Parameters
    ----------
    scores : array (row,)
        Higher = more unusual; infinite ones are ranked like others.
    out_of_distribution : array (row,)
        1 for the rows that ought to score high, 0 for the others.
    group : array (row,), optional
        Documents, persons, trajectories: resampled whole.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Returns
    -------
    Metric

    Examples
    --------
    >>> found = auroc([0.1, 0.4, 0.4, 0.8, 0.4, 0.9], [0, 0, 0, 1, 1, 1])
    >>> f"{found.value:.4f}"
    '0.8889'

    References
    ----------
    newcombe2006auc
    """
    values, positive = _checked_scores("auroc", scores, out_of_distribution)
    ranked = Ranked.of(values)

    def figure(weight: Tensor) -> Tensor:
        up, down = ranked.sums(weight * positive), ranked.sums(weight * ~positive)
        lower = down - steps(down) / 2
        return (steps(up) * lower).sum(1) / (up[:, -1] * down[:, -1])

    member = members(group, len(values))
    metric = measured(
        figure, member, Bootstrap(resamples, seed, level), null=0.5, range=(0.0, 1.0),
        kinds=(positive, ~positive), **_counts(positive),
    )  # fmt: skip
    if "saturated" not in metric.flags:
        return metric
    n, m = (len(member[kind].unique()) for kind in (~positive, positive))
    low, high = auroc_bounds(float(metric.value), n, m, (1 - level) / 2)
    se = max(float(metric.value) - low, high - float(metric.value)) / -float(ndtri((1 - level) / 2))
    conventions = {**metric.conventions, "ends": "newcombe"}
    return replace(metric, se=se, low=low, high=high, conventions=conventions)


@answered()
@renamed(out_of_distribution="unusual")
def aupr(
    scores: Any,
    out_of_distribution: Any,
    group: Any = None,
    *,
    positive: Positive = "unusual",
    interpolation: Literal["step", "trapezoid"] = "step",
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the average precision: the sum of precision times the gain in recall.

    Parameters
    ----------
    scores : object
        Score of each row; higher is more outlying, and infinite scores are ranked like others.
    out_of_distribution : object
        1 for rows that should score high (out of distribution), 0 for the others.
    group : object, optional
        Document, person or trajectory of each row: groups are resampled whole.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).
    positive : {"unusual", "usual"}, default="unusual"
        Which kind is looked for; ``usual`` looks for it from the low end.
    interpolation : {"step", "trapezoid"}, default="step"
        ``trapezoid`` joins the points of the curve by lines, which is too optimistic; use it only
        to compare with tables that were made this way.

    Examples
    --------
    >>> found = aupr([0.1, 0.4, 0.4, 0.8, 0.4, 0.9], [0, 0, 0, 1, 1, 1])
    >>> f"{found.value:.4f}"
    '0.8667'
    """
    values, unusual_rows = _checked_scores("aupr", scores, out_of_distribution)
    wanted, ranked = _from_the_end(values, unusual_rows, positive)

    def figure(weight: Tensor) -> Tensor:
        hits, seen = ranked.sums(weight * wanted), ranked.sums(weight)
        precision = torch.where(seen > 0, hits / seen.clamp_min(1), torch.ones_like(seen))
        height = precision
        if interpolation == "trapezoid":
            before = torch.cat([torch.ones_like(seen[:, :1]), precision[:, :-1]], dim=1)
            height = (precision + before) / 2
        return (steps(hits) * height).sum(1) / hits[:, -1]

    null = _expected_precision(ranked, wanted, interpolation == "trapezoid")
    return measured(
        figure, members(group, len(values)), Bootstrap(resamples, seed, level), null=null,
        range=(0.0, 1.0), kinds=(wanted, ~wanted), **_counts(unusual_rows),
        conventions={"positive": positive, "interpolation": interpolation},
    )  # fmt: skip


@answered()
@renamed(out_of_distribution="unusual")
def fpr_at_tpr(
    scores: Any,
    out_of_distribution: Any,
    group: Any = None,
    *,
    rate: float = 0.95,
    positive: Positive = "unusual",
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the false-positive rate at which at least ``rate`` of the positives pass.

    The threshold is the highest at which the share of positives at or above it is at least
    ``rate``. Two conventions are in use: ``positive="unusual"`` finds 95 % of the
    unusual rows and counts false alarms, ``"usual"`` keeps 95 % of the usual rows and counts
    misses. If fewer than three groups of positives are expected below the threshold, resamples do
    not show how much it varies: the interval is too narrow, and the flag ``few_rows`` says so.

    Parameters
    ----------
    scores : object
        Score of each row; higher is more outlying, and infinite scores are ranked like others.
    out_of_distribution : object
        1 for rows that should score high (out of distribution), 0 for the others.
    group : object, optional
        Document, person or trajectory of each row: groups are resampled whole.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).
    rate : float, default=0.95
        True-positive rate that must be reached, in (0, 1].
    positive : {"unusual", "usual"}, default="unusual"
        Kind of rows that is looked for: ``unusual`` rows from the high end, or ``usual`` rows from
        the low end.

    Examples
    --------
    >>> fpr_at_tpr([0.1, 0.4, 0.4, 0.8, 0.4, 0.9], [0, 0, 0, 1, 1, 1], rate=0.6).value
    0.0
    """
    if not 0 < rate <= 1:
        raise InputError(f"fpr_at_tpr: expected a rate in (0, 1], got {rate}.")
    values, unusual_rows = _checked_scores("fpr_at_tpr", scores, out_of_distribution)
    wanted, ranked = _from_the_end(values, unusual_rows, positive)

    def figure(weight: Tensor) -> Tensor:
        hits, false = ranked.sums(weight * wanted), ranked.sums(weight * ~wanted)
        short = (hits < rate * hits[:, -1:] - 1e-9).sum(1, keepdim=True)
        rates = false.gather(1, short.clamp_max(false.shape[1] - 1))[:, 0] / false[:, -1]
        return torch.where(hits[:, -1] > 0, rates, torch.full_like(rates, torch.nan))

    n_wanted = int(wanted.sum())
    null = math.ceil(rate * n_wanted - 1e-9) / (n_wanted + 1)
    member = members(group, len(values))
    metric = measured(
        figure, member, Bootstrap(resamples, seed, level), null=null, range=(0.0, 1.0),
        kinds=(wanted, ~wanted), direction="lower", **_counts(unusual_rows),
        conventions={"positive": positive, "tpr": rate},
    )  # fmt: skip
    below = (1 - rate) * len(member[wanted].unique())
    few = below < LEAST_BELOW and metric.se is not None
    return replace(metric, flags=(*metric.flags, "few_rows")) if few else metric


def _expected_precision(ranked: Ranked, wanted: Tensor, joined: bool) -> float:
    """Return the expected average precision over all orders of the rows, with the same ties.

    A row is wanted with the chance ``p``, two rows with the chance ``p2``. A block of ``m`` rows
    whose last row is the ``s``-th brings on average ``m (p + (s - 1) p2)`` pairs of a wanted row in
    the block and a wanted row up to its end.
    """
    n, hits = len(wanted), int(wanted.sum())
    p, p2 = hits / n, hits * (hits - 1) / (n * max(n - 1, 1))
    seen = (ranked.ends + 1).double()
    block = torch.diff(seen, prepend=seen.new_zeros(1))
    gain = block * (p + (seen - 1) * p2) / seen
    if joined:
        before = block * p2
        before[0] = block[0] * p
        gain = (gain + before) / 2
    return float(gain.sum()) / hits


def _checked_scores(name: str, scores: Any, unusual: Any) -> tuple[Tensor, Tensor]:
    values = numbers(name, scores, "scores")
    positive = kinds(name, unusual, len(values))
    require_both(name, positive)
    return values, positive


def _from_the_end(values: Tensor, unusual: Tensor, positive: str) -> tuple[Tensor, Ranked]:
    """Return which rows are wanted, and the order that should place them last."""
    wanted = unusual if positive == "unusual" else ~unusual
    return wanted, Ranked.of(values, descending=positive == "unusual")


def _counts(positive: Tensor) -> dict[str, Any]:
    n_positive = int(positive.sum())
    return {"n_positive": n_positive, "n_negative": len(positive) - n_positive}
