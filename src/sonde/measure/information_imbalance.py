"""How well a row's nearest neighbour at one site predicts its neighbours at another."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.result import Direction, Result
from sonde.measure._neighbourhood import copy_flags, without_copies
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState, distance_chunks, nearest
from sonde.stats.sampled_rows import SampledRows


@final
@dataclass(frozen=True, kw_only=True)
class InformationImbalanceResult(Result):
    """Imbalance from the first site to the second; ``reverse`` is the opposite direction.

    Low value, high ``reverse``: the first site holds the information of the second, and more.
    """

    direction: Direction = "lower"
    reverse: float
    reverse_se: float


@final
@dataclass(frozen=True)
class InformationImbalance(PairSampleInstrument):
    """Mean rank, at the second site, of each row's nearest neighbour at the first site.

    ``2 / n`` times the mean rank: near 0 if distances at the first site predict distances at the
    second, 1 if they say nothing about them. It is not symmetric, on purpose: a site that holds the
    information of another and more has a low value towards that site and a high value back.

    Range        (0, 1]; lower = the first tells more. Invariant to rotation, isotropic
                 scale, shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 dim), never more than 1,024 lines at once.
    Assumes      rows of one group (document) are no neighbours of each other: they are left out.
    Differs      from the paper: rows at equal distance share the mean of their ranks; ``n`` is the
                 number of rows of other groups plus 1.

    Parameters
    ----------
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> result = information_imbalance(x, x[:, :1])
    >>> result.value < 0.1 < result.reverse
    True

    References
    ----------
    glielmo2022imbalance
    """

    m: int = SAMPLE
    paper: ClassVar[str] = "glielmo2022imbalance"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"m": 64})

    def result(
        self, samples: tuple[HashSampleState, HashSampleState]
    ) -> InformationImbalanceResult:
        """Rank each site's nearest neighbours at the other site."""
        every = SampledRows.of(samples)
        rows = without_copies(every)
        dead = len(rows) > 0 and any(bool((x == x[0]).all()) for x in rows.rows)
        wrong = ("few_rows",) if rows.n_groups < 3 else ("dead",) if dead else ()
        if wrong:
            return InformationImbalanceResult(
                n=len(rows),
                range=(0.0, 1.0),
                flags=(*every.flags, *wrong),
                reverse=math.nan,
                reverse_se=math.nan,
            )
        (there, added), (back, added_back) = _shares(rows, 0, 1), _shares(rows, 1, 0)
        # a row enters by its own neighbour and in the ranks of others: both vary with it
        se, how = rows.error_of_mean(there + added)
        other, _ = rows.error_of_mean(back + added_back)
        return InformationImbalanceResult(
            value=float(there.mean()),
            se=se,
            null=1.0,
            n=len(rows),
            range=(0.0, 1.0),
            flags=every.flags + copy_flags(every.rows, every.group),
            conventions={"neighbours": "of other groups", "ties": "mean rank", "se": how},
            reverse=float(back.mean()),
            reverse_se=math.nan if other is None else float(other),
        )


def _shares(
    rows: SampledRows, near: int, ranked: int
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
    """Return each row's rank of its nearest neighbour, divided by the mean rank.

    Also return how much each row adds to the ranks of others by being nearer than their neighbours.
    """
    x, y, group = rows.rows[near], rows.rows[ranked], rows.group
    neighbour = nearest(x, x, 1, group=group, group2=group)[1].to(y.device)
    own = group.to(y.device)
    unit = 2.0 / (len(rows) - torch.bincount(group)[group] + 1).double().to(y.device)
    rank, added = torch.zeros_like(unit), torch.zeros_like(unit)
    for start, far in distance_chunks(y, y):
        part = slice(start, start + len(far))
        far.masked_fill_(own[part, None] == own, torch.inf)
        distance_there = far.gather(1, neighbour[part])
        before = (far < distance_there).double() + (far == distance_there) / 2
        rank[part] = before.sum(1) + 0.5
        added += unit[part] @ before
    return (rank * unit).cpu(), added.cpu()


information_imbalance = as_function(InformationImbalance)
