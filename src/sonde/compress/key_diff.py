"""Keep the tokens whose keys differ from the others.

Needs no attention, so that it works with every kernel and long prompts. Repeated content goes
first, whether the answer needs it or not.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from sonde.core import CachedTokens, CacheRule


@final
@dataclass(frozen=True)
class KeyDiff(CacheRule):
    """Keep the tokens whose keys point away from the mean key of their head.

    Formula: ``score_j = -cos(k_j, m)``, m the mean of the unit keys of all tokens that are held.

    Range        [-1, 1], dimensionless; higher stays.
    Cost         no attention is read; beside keys and values 8 bytes for each slot and head.
    Assumes      keys that are similar are redundant.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.

    References
    ----------
    park2025keydiff
    """

    budget: int | float = 0.25
    paper: ClassVar[str] = "park2025keydiff"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"budget": 3})

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the negative cosine between each key and the mean unit key."""
        keys = keys.float()
        per_length = 1 / vector_norm(keys, dim=-1).clamp(min=1e-12)
        held = torch.where(seen.index >= 0, per_length, 0.0)[..., None, :]
        return -(keys @ normalize(held @ keys, dim=-1).mT)[..., 0] * per_length
