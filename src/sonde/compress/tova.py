"""Keep the tokens that the last query attends to (TOVA: token omission via attention)."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sonde.core import CachedTokens, CacheRule


@final
@dataclass(frozen=True)
class TOVA(CacheRule):
    """Keep the tokens to which the newest query gives the most attention.

    Formula: ``score_j = a_qj``, q the last real token, averaged over the query heads of a key head.

    Range        [0, 1], share of attention; higher stays.
    Cost         attention of one query beside the kernel; beside keys and values 8 bytes for each
                 slot and head, and one query.
    Assumes      the next queries ask for what the last one asked for.
    Differs      from the paper: each key head chooses its own tokens; the paper averages over all
                 heads of a layer.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.

    References
    ----------
    oren2024transformers
    """

    budget: int | float = 0.25
    paper: ClassVar[str] = "oren2024transformers"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"budget": 3})

    def reads_attention(self) -> int:
        """Return 1, because only the attention of the last query is read."""
        return 1

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the attention of the last query."""
        return seen.received()
