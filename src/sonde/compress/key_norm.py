"""Keep the tokens with short keys.

For models in which keys of small norm draw the most attention, which was found in several trained
language models. In small models without attention sinks, arbitrary tokens are often better to keep.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sonde.core import CachedTokens, CacheRule


@final
@dataclass(frozen=True)
class KeyNorm(CacheRule):
    """Keep the tokens with the smallest key norm in each head.

    Formula: ``score_j = -||k_j||``.

    Range        (-inf, 0], in units of the keys; higher stays.
    Cost         no attention is read; beside keys and values 8 bytes for each slot and head.
    Assumes      a model in which short keys are the attended ones.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.

    References
    ----------
    devoto2024simple
    """

    budget: int | float = 0.25
    paper: ClassVar[str] = "devoto2024simple"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"budget": 3})

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the negative norm of each key."""
        return -keys.float().norm(dim=-1)
