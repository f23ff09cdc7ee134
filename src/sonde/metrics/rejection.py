"""Prediction rejection ratio: how well uncertainty selects the answers to reject."""

from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.metrics._ranked import Ranked, numbers, steps
from sonde.metrics.intervals import LEVEL, RESAMPLES, Bootstrap, Metric, measured, members


def prediction_rejection(
    uncertainty: Any,
    quality: Any,
    group: Any = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the prediction rejection ratio (PRR): 1 = oracle, 0 = chance.

    The gain of the order by uncertainty, divided by the gain of the order by quality itself. The
    gain of an order is the mean quality of its first ``k`` answers, averaged over all ``k``, less
    the mean quality of all answers. Answers of equal uncertainty count with their mean quality, the
    average over their orders; the chance level is the mean quality exactly. If all qualities are
    equal, the value is not defined (NaN). Few answers below (or above) the mean quality widen the
    interval: twelve wrong ones of 200 count as twelve groups.

    Parameters
    ----------
    uncertainty : array (row,)
        Higher = left out first.
    quality : array (row,)
        Quality of each answer, such as 1 for correct and 0 for wrong answers.
    group : object, optional
        Document, person or trajectory of each row: groups are resampled whole.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).

    Examples
    --------
    >>> prediction_rejection([0.9, 0.1, 0.4, 0.6, 0.2], [0, 1, 1, 0, 1]).value
    1.0

    References
    ----------
    malinin2021prr
    """
    values = numbers("prediction_rejection", uncertainty, "uncertainties")
    good = numbers("prediction_rejection", quality, "qualities")
    if len(values) != len(good) or not bool(good.isfinite().all()):
        raise InputError(
            f"prediction_rejection: expected a finite quality for each of {len(values)} "
            f"answers, got {int(good.isfinite().sum())} finite values."
        )
    ranked, oracle = Ranked.of(values), Ranked.of(good, descending=True)

    def figure(weight: Tensor) -> Tensor:
        n = weight.sum(1)
        mean = (weight * good).sum(1) / n
        best = _area(oracle, weight, good) / n - mean
        gain = _area(ranked, weight, good) / n - mean
        flat = best.abs() <= 1e-12 * (1 + mean.abs())
        return torch.where(flat, torch.full_like(mean, torch.nan), gain / best)

    worse = good < good.mean()
    return measured(
        figure, members(group, len(values)), Bootstrap(resamples, seed, level), null=0.0,
        range=(-float("inf"), 1.0), kinds=(worse, ~worse) if bool(worse.any()) else (),
    )  # fmt: skip


def _area(ranked: Ranked, weight: Tensor, quality: Tensor) -> Tensor:
    """Return the sum over k of the mean quality of the first k, averaged over tied rows.

    Behind ``N`` rows of sum ``Q`` the j-th row of a block with mean ``b`` has the running mean
    ``b + (Q - b N) / (N + j)``; the sum over j is a difference of harmonic numbers.
    """
    rows, total = ranked.sums(weight), ranked.sums(weight * quality)
    n = steps(rows)
    mean = steps(total) / n.clamp_min(1)
    before, sum_before = rows - n, total - steps(total)
    terms = 1 / torch.arange(1, int(rows.max()) + 1, dtype=torch.float64)
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), terms.cumsum(0)])
    harmonic = sums[rows.long()] - sums[before.long()]
    return (n * mean + (sum_before - mean * before) * harmonic).sum(1)
