"""Keep the tokens that received the most attention so far, and the newest (H2O).

A token that many queries attended to is likely to be attended to again. Early tokens had more
queries to collect attention from: ``observed=True`` corrects for that.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor

from sonde.core import CachedTokens, CacheRule
from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True)
class H2O(CacheRule):
    """Keep the tokens with the largest sum of attention over all queries, and the newest.

    Formula: ``score_j = sum_q a_qj``; with ``observed`` divided by the queries that could see j.

    Range        [0, queries], in attention; higher stays.
    Cost         attention of every query beside the kernel, 256 queries at a time; beside keys and
                 values 12 bytes for each slot and head.
    Assumes      what was attended to will be attended to.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.
    recent : float, default=0.5
        Share of the budget that goes to the newest tokens, in [0, 1].
    observed : bool, default=False
        Take the mean over the queries that could see the token instead of the sum.

    References
    ----------
    zhang2023h2o
    """

    budget: int | float = 0.25
    recent: float = 0.5
    observed: bool = False
    word: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "zhang2023h2o"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"budget": 4, "recent": 0.25, "observed": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, recent="[0, 1]")

    def reads_attention(self) -> Literal["all"]:
        """Return "all", because the attention of every query is read."""
        return "all"

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the attention that each token received. The newest tokens are always kept."""
        received = seen.received().double()
        if self.observed:
            received = received / (seen.age + 1).clamp(min=1)
        return seen.with_newest(received, (seen.keep * self.recent).floor().long())
