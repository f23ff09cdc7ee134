"""Decide once whether to keep a token, for servers whose caches only grow."""

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.compress._around import RuleAround
from sonde.compress.key_diff import KeyDiff
from sonde.core import CachedTokens, CacheRule, InputError
from sonde.core.cache_rule import kept_count


@final
@dataclass(frozen=True)
class DecideOnce(RuleAround):
    """Keep a fraction of each block of tokens, chosen by another rule when the block is full.

    What was kept of a block stays for good and what was dropped never comes back, so that slots of
    decided blocks are written once and their order never changes. The tokens of the block that is
    not full yet all stay.

    Range        infinite for tokens that stay; of each full block ``ceil(budget * block)``.
    Cost         that of the rule.
    Assumes      that every part of the text deserves the same share.

    Parameters
    ----------
    budget : float, default=0.25
        Share of the tokens of a full block that stays; a number of tokens cannot be kept by a cache
        that only grows.
    rule : CacheRule, default=KeyDiff()
        Gives the scores by which tokens of one block are compared; its own budget is not used.
    block : int, default=64
        Tokens that are decided on together.
    """

    budget: int | float = 0.25
    rule: CacheRule = field(default_factory=KeyDiff)
    block: int = 64
    examples: ClassVar[tuple[dict, ...]] = ({"block": 3}, {"budget": 0.5, "block": 4})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.budget, float) or self.block < 1:
            raise InputError(
                "DecideOnce: expected budget to be a fraction in (0, 1] and block from 1, got "
                f"budget={self.budget!r} and block={self.block!r}."
            )

    def kept(self, total: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """Return the number of kept tokens: a fraction of full blocks, all of the last block."""
        share = kept_count(float(self.budget), self.block)
        return total // self.block * share + total % self.block

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return infinity for the best tokens of each full block and for the last block."""
        scores = self.rule.score(keys, values, seen).clamp(max=torch.finfo(torch.float32).max)
        scores = scores.masked_fill(seen.index < 0, -torch.inf)
        block = seen.index // self.block
        # by block and then by score, best first: two stable sorts, the last one counts most
        order = scores.argsort(dim=-1, descending=True, stable=True)
        order = order.gather(-1, block.gather(-1, order).argsort(dim=-1, stable=True))
        sorted_block = block.gather(-1, order).contiguous()
        first = torch.searchsorted(sorted_block, sorted_block)
        rank = torch.empty_like(order)
        place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        rank.scatter_(-1, order, place - first)
        open_block = block == (seen.total // self.block)[:, None, None]
        share = kept_count(float(self.budget), self.block)
        return torch.where((rank < share) | open_block, torch.inf, -torch.inf)
