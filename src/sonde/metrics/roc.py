"""ROC curve of labelled rows with a pointwise band over resampled groups."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import widen_ends
from sonde.core.keywords import answered
from sonde.core.renaming import renamed
from sonde.metrics._ranked import Ranked, kinds, numbers, require_both
from sonde.metrics.intervals import LEVEL, RESAMPLES, Bootstrap, counted_groups, members

POINTS = 101


@final
@dataclass(frozen=True)
class Roc:
    """Points of a curve from (0, 0) to (1, 1), and a band at even false-alarm rates.

    Parameters
    ----------
    fpr, tpr : Float[Tensor, "point"]
        Shares of usual and of unusual rows that score at least ``threshold``. Rows of equal score
        make one step, and a line between points shares it out evenly.
    threshold : Float[Tensor, "point"]
        ``+inf`` at the first point, at which nothing passes.
    grid, low, high : Float[Tensor, "place"]
        Ends of the interval of the true-alarm rate at each false-alarm rate of ``grid``; empty
        without resamples.
    level : float
        Confidence of the interval, in (0, 1).
    """

    fpr: Float[Tensor, "point"]
    tpr: Float[Tensor, "point"]
    threshold: Float[Tensor, "point"]
    grid: Float[Tensor, "place"]
    low: Float[Tensor, "place"]
    high: Float[Tensor, "place"]
    level: float = LEVEL


@answered()
@renamed(out_of_distribution="unusual")
def roc(
    scores: Any,
    out_of_distribution: Any,
    group: Any = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Roc:
    """Return the ROC curve; higher scores come first.

    The band is pointwise: at one false-alarm rate, ``level`` of the resampled curves lie in it. Of
    fewer than 32 groups it is widened by Student's t; a single group has none. If both kinds are
    separated completely, it has no width, unlike the interval of ``auroc``.

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

    Raises
    ------
    InputError
        If there is a NaN, or rows of one kind only.

    Examples
    --------
    >>> found = roc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], resamples=0)
    >>> found.fpr.tolist(), found.tpr.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    values = numbers("roc", scores, "scores")
    positive = kinds("roc", out_of_distribution, len(values))
    require_both("roc", positive)
    ranked = Ranked.of(values, descending=True)
    fpr, tpr = _curves(ranked, positive, torch.ones(1, len(values), dtype=torch.float64))
    steps = torch.cat([values.new_tensor([torch.inf]), values[ranked.order][ranked.ends]])
    grid = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    member = members(group, len(values))
    resampled = [
        at_rates(*_curves(ranked, positive, weight), grid)
        for weight in Bootstrap(resamples, seed, level).weights(member)
    ]
    heights = torch.cat(resampled) if resampled else grid.new_empty(0, POINTS)
    heights = heights[heights.isfinite().all(dim=1)]
    n_groups = min(counted_groups(member, kind) for kind in (positive, ~positive))
    if len(heights) < 2 or n_groups < 2:
        nothing = grid[:0]
        return Roc(fpr[0], tpr[0], steps, nothing, nothing, nothing, level)
    low, high = widen_ends(heights, n_groups, level, (0.0, 1.0))
    return Roc(fpr[0], tpr[0], steps, grid, low, high, level)


def _curves(
    ranked: Ranked, positive: Tensor, weight: Float[Tensor, "resample row"]
) -> tuple[Float[Tensor, "resample point"], Float[Tensor, "resample point"]]:
    """Return both rates after each block of ties; NaN if a kind has no weight."""
    rates = []
    for kind in (~positive, positive):
        sums = ranked.sums(weight * kind)
        rates.append(torch.cat([torch.zeros_like(sums[:, :1]), sums / sums[:, -1:]], dim=1))
    return rates[0], rates[1]


def at_rates(
    fpr: Float[Tensor, "resample point"],
    tpr: Float[Tensor, "resample point"],
    grid: Float[Tensor, "place"],
) -> Float[Tensor, "resample place"]:
    """Return curve heights at false-alarm rates: the top of a step, lines between points.

    Raises
    ------
    InputError
        If a rate lies outside [0, 1].
    """
    if bool((grid < 0).any()) or bool((grid > 1).any()):
        raise InputError("at_rates: expected false-alarm rates in [0, 1].")
    wanted = grid.expand(len(fpr), -1).contiguous()
    left = torch.searchsorted(fpr.contiguous(), wanted, right=True) - 1
    right = (left + 1).clamp(max=fpr.shape[1] - 1)
    x0, x1 = fpr.gather(1, left.clamp(min=0)), fpr.gather(1, right)
    y0, y1 = tpr.gather(1, left.clamp(min=0)), tpr.gather(1, right)
    share = torch.where(x1 > x0, (wanted - x0) / (x1 - x0).clamp(min=1e-300), 0.0)
    return y0 + share * (y1 - y0)
