"""Keep the newest tokens of a key-value cache: a simple baseline for other rules."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sonde.core import CachedTokens, CacheRule


@final
@dataclass(frozen=True)
class RecentCache(CacheRule):
    """Keep the newest tokens of each text.

    Range        scores are positions in the text; the newest stay.
    Cost         no attention is read; beside keys and values 8 bytes for each slot and head.
    Assumes      nothing of the model.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.

    Examples
    --------
    >>> RecentCache(budget=64)
    RecentCache(budget=64)
    """

    budget: int | float = 0.25
    examples: ClassVar[tuple[dict, ...]] = ({}, {"budget": 3})

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the position of each token in its text."""
        return seen.index.double()
