"""Ranking of rows inside each group, without help from differences between groups."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.keywords import answered
from sonde.core.renaming import renamed
from sonde.core.wording import plural
from sonde.metrics._ranked import kinds, numbers
from sonde.metrics.intervals import LEVEL, RESAMPLES, Bootstrap, Metric, measured, members
from sonde.stats.auroc import midranks


@answered()
@renamed(out_of_distribution="unusual")
def auroc_within(
    scores: Any,
    out_of_distribution: Any,
    group: Any,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Metric:
    """Return the chance that an outlying row outscores an in-distribution row of its group.

    ``auroc`` also compares rows of different groups, so that a score that only knows which prompts
    are hard looks good. Here only pairs inside a group count, each once, ties half; groups of one
    kind of rows have no pair. Pass the lengths of texts as scores to see how much length alone can
    tell.

    Parameters
    ----------
    scores : object
        Score of each row; higher is more outlying, and infinite scores are ranked like others.
    out_of_distribution : object
        1 for rows that should score high (out of distribution), 0 for the others.
    resamples : int, default=1000
        Number of bootstrap resamples of groups behind the interval, at least 1.
    seed : int, default=0
        Seed of the resamples.
    level : float, default=0.95
        Confidence of the interval, in (0, 1).
    group : array (row,)
        The prompt of each row; prompts are resampled whole.

    Examples
    --------
    >>> hard = [9.0, 8.0, 7.0, 2.0, 1.0, 3.0]  # the first prompt's rows score high, right or wrong
    >>> round(auroc_within(hard, [1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1]).value, 2)
    0.5
    """
    values = numbers("auroc_within", scores, "scores")
    positive = kinds("auroc_within", out_of_distribution, len(values))
    member = members(group, len(values))
    won, pairs = _pairs(values, positive, member)
    if not bool(pairs.any()):
        raise InputError(
            "auroc_within: expected a group with both in-distribution rows (label 0) and "
            f"outliers (label 1), got {plural(len(pairs), 'group')} with only one label each. "
            "Score several rows of each group."
        )
    first = torch.full((len(pairs),), len(values))
    first.scatter_reduce_(0, member, torch.arange(len(values)), "amin")

    def figure(weight: Tensor) -> Tensor:
        times = weight[:, first]
        return (times @ won) / (times @ pairs)

    return measured(
        figure, member, Bootstrap(resamples, seed, level), null=0.5, range=(0.0, 1.0),
        kinds=(pairs[member] > 0,),
        n_positive=int(positive.sum()), n_negative=int((~positive).sum()),
        conventions={"pairs": int(pairs.sum()), "groups_with_pairs": int((pairs > 0).sum())},
    )  # fmt: skip


def _pairs(
    values: Float[Tensor, "row"], positive: Bool[Tensor, "row"], member: Int[Tensor, "row"]
) -> tuple[Float[Tensor, "group"], Float[Tensor, "group"]]:
    """Return each group's number of ordered pairs (ties half), and of all pairs."""
    n_groups = int(member.max()) + 1
    won, pairs = torch.zeros(2, n_groups, dtype=torch.float64)
    for rows in torch.split(member.argsort(stable=True), torch.bincount(member).tolist()):
        up = positive[rows]
        n, m = int(up.sum()), int((~up).sum())
        if n and m:
            g = int(member[rows[0]])
            won[g] = midranks(values[rows])[up].sum() - n * (n + 1) / 2
            pairs[g] = n * m
    return won, pairs
