"""Keep the first and the newest tokens of a key-value cache (StreamingLLM).

For endless texts of models that put much attention on the first token. Tokens in between are lost
for good: use another rule if the answer needs them.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sonde.core import CachedTokens, CacheRule
from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True)
class StreamingCache(CacheRule):
    """Keep the first few tokens of each text, and the newest of the other tokens.

    The first tokens serve many models as attention sinks: heads with nothing to say put their
    attention there.

    Range        scores are positions in the text; infinite for the first ``n_first`` tokens.
    Cost         no attention is read; beside keys and values 8 bytes for each slot and head.
    Assumes      a model that was trained with attention to its first token.
    Differs      from the paper: keys keep the rotation of their place in the text, so that the
                 distance to the first tokens may grow beyond the trained length.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.
    n_first : int, default=4
        Tokens at the start of each text that always stay.

    References
    ----------
    xiao2024streaming
    """

    budget: int | float = 0.25
    n_first: int = 4
    paper: ClassVar[str] = "xiao2024streaming"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"budget": 5, "n_first": 2})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, n_first=">= 0")

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the position of each token in its text; infinite for the first tokens."""
        place = seen.index.double()
        return torch.where(seen.index < self.n_first, torch.inf, place)
