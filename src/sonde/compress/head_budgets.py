"""Divide a layer's budget among its heads by the scores of another rule (AdaKV)."""

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from sonde.compress._around import RuleAround
from sonde.compress.snap_kv import SnapKV
from sonde.core import CachedTokens, CacheRule
from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True)
class HeadBudgets(RuleAround):
    """Keep the tokens of the largest scores over all heads of a layer, and a minimum in each head.

    Heads that look at few tokens give slots to heads that look at many. Each head keeps its best
    ``floor * budget`` tokens; the rest of all heads' budgets goes to the largest scores, of equal
    scores to the first head's.

    Range        scores of the rule; in sum over heads ``budget`` times their number is kept.
    Cost         that of the rule; between calls no empty slot is held, in a call each head has as
                 many slots as the fullest.
    Assumes      scores of heads that can be compared, such as shares of attention.
    Differs      from the paper: the budget also holds while text is generated.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay in each head on average, or their share of those seen.
    rule : CacheRule, default=SnapKV()
        Gives the scores; its own budget is not used.
    floor : float, default=0.2
        Share of the budget that each head has for itself, in [0, 1].

    References
    ----------
    feng2024adakv
    """

    budget: int | float = 0.25
    rule: CacheRule = field(default_factory=SnapKV)
    floor: float = 0.2
    by_head: ClassVar[bool] = True
    paper: ClassVar[str] = "feng2024adakv"
    examples: ClassVar[tuple[dict, ...]] = (
        {"rule": SnapKV(window=2, kernel=3)},
        {"budget": 3, "floor": 0.0, "rule": SnapKV(window=1, kernel=1)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, floor="[0, 1]")

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the scores of the inner rule."""
        return self.rule.score(keys, values, seen)

    def share_out(self, scores: Tensor, seen: CachedTokens) -> Tensor:
        """Return the number of kept tokens of each head: its minimum plus its largest scores."""
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        rank = order.argsort(-1)
        floor = (self.floor * seen.keep).floor()[:, None, None]
        sure = (rank < floor) & (seen.index >= 0)
        every = torch.where(sure, torch.inf, scores).flatten(1)
        best = every.sort(dim=-1, descending=True, stable=True).indices
        place = best.argsort(-1).view_as(rank)
        total = (seen.keep * scores.shape[1])[:, None, None]
        return ((place < total) & (seen.index >= 0)).sum(-1)
