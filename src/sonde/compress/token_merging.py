"""Merge similar tokens, block by block, in image and text encoders (ToMe)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sonde.core import InsideTokens, Reduction, TokenRule
from sonde.core.cache_rule import exact_share
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed


@renamed(merge="share")
@final
@dataclass(frozen=True)
class TokenMerging(TokenRule):
    """Merge the most similar pairs of tokens after each block.

    Real tokens are split in turn into two sets. Each token of the first set finds the most similar
    token of the second set, by the cosine between their keys, mean over heads. The best pairs are
    merged into the mean of the tokens that they stand for. A merged token draws the attention of
    all its tokens: the logarithm of its size is added to its scores.

    Range        at most half of the tokens behind each block; ``merge=0`` changes nothing.
    Cost         products of the keys of one set with those of the other behind each block.
    Assumes      attention in both directions: in causal models a token would see its successors.
    Differs      from the paper: tokens are merged behind a block, not between its attention and its
                 MLP; keys are compared after rotation, where there is one.

    Parameters
    ----------
    merge : float, default=0.0625
        Fraction of the input's tokens that is merged behind each block, in [0, 0.5].
    protected : int, default=1
        First tokens that are never merged, such as a class token.

    References
    ----------
    bolya2023tome
    """

    merge: float = 0.0625
    protected: int = 1
    counts_sizes: ClassVar[bool] = True
    paper: ClassVar[str] = "bolya2023tome"
    examples: ClassVar[tuple[dict, ...]] = ({"merge": 0.25}, {"merge": 0.4, "protected": 0})

    def __post_init__(self) -> None:
        check_ranges(self, merge="[0, 0.5]", protected=">= 0")

    def acts(self, block: int, n_blocks: int) -> bool:
        """Return True, because tokens are merged after every block."""
        return True

    def reduce(self, seen: InsideTokens) -> Reduction:
        """Return the pairs to merge: tokens of the first set join tokens of the second set."""
        number = seen.real.long().cumsum(1) - 1
        first = seen.real & (number % 2 == 1) & (number >= self.protected)
        second = seen.real & (number % 2 == 0) & (number >= self.protected)
        metric = normalize(seen.keys.float().mean(1), dim=-1)
        cosine = metric @ metric.mT
        cosine = cosine.masked_fill(~(first[:, :, None] & second[:, None, :]), -torch.inf)
        best, partner = cosine.max(2)
        share = exact_share(self.merge)
        n = seen.n_input * share.numerator // share.denominator
        rank = best.sort(dim=1, descending=True, stable=True).indices.argsort(1)
        merged = (rank < n[:, None]) & first & best.isfinite()
        own: Tensor = torch.arange(number.shape[1], device=number.device).expand_as(number)
        return Reduction(torch.where(merged, partner, own), seen.size)
