"""Drop the tokens with the least attention from the class token or a text's end (EViT)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.core import InsideTokens, Reduction, TokenRule
from sonde.core.cache_rule import exact_share
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.core.token_rule import Asked


@renamed(keep="share")
@final
@dataclass(frozen=True)
class TokenPruning(TokenRule):
    """Keep the tokens that one query attends to most, after some blocks.

    Range        ``ceil(keep * tokens)`` stay behind each of the blocks, the query's own among
                 them; ``keep=1`` changes nothing.
    Cost         attention of one query in each block.
    Assumes      a class token at the start (``asks="first"``), or a text whose end asks
                 (``asks="last"``).
    Differs      from the paper: no training with fewer tokens.

    Parameters
    ----------
    keep : float, default=0.7
        Fraction of the incoming tokens that stays behind each of the blocks, in (0, 1].
    after : tuple of int, default=(2,)
        Blocks behind which tokens are dropped, counted from 0.
    asks : {"first", "last"}, default="first"
        The query whose attention counts.
    rest : bool, default=False
        Keep one token more: the mean of those that are dropped, weighted by the attention to them.

    References
    ----------
    liang2022evit
    """

    keep: float = 0.7
    after: tuple[int, ...] = (2,)
    asks: Asked | None = "first"
    rest: bool = False
    paper: ClassVar[str] = "liang2022evit"
    examples: ClassVar[tuple[dict, ...]] = (
        {"keep": 0.5, "after": (0,)},
        {"keep": 0.6, "after": (0, 1), "asks": "last", "rest": True},
    )

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1]", asks=("first", "last"))

    def acts(self, block: int, n_blocks: int) -> bool:
        """Return whether the block is one of ``after``."""
        return block in self.after

    def reduce(self, seen: InsideTokens) -> Reduction:
        """Return the kept tokens; others are dropped, or merged into the first dropped token."""
        assert seen.received is not None
        real, n = seen.real, seen.real.sum(1)
        number = real.long().cumsum(1) - 1
        asking = number == (n[:, None] - 1 if self.asks == "last" else 0)
        scores = seen.received.masked_fill(asking, torch.inf).masked_fill(~real, -torch.inf)
        rank = scores.sort(dim=1, descending=True, stable=True).indices.argsort(1)
        share = exact_share(self.keep)
        kept = -(-n * share.numerator // share.denominator)
        stays = (rank < kept[:, None]) & real
        own = torch.arange(real.shape[1], device=real.device).expand_as(real)
        if not self.rest:
            return Reduction(torch.where(stays, own, -1), torch.ones_like(seen.size))
        dropped = real & ~stays
        leader = dropped.int().argmax(1, keepdim=True)
        weight = torch.where(dropped, seen.received.clamp(min=1e-30), 1.0).to(seen.size)
        return Reduction(torch.where(stays, own, leader), weight)
