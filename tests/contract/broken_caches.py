"""Broken twins of rules of key-value caches."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sonde.core import CachedTokens, CacheRule


@final
@dataclass(frozen=True)
class Newest(CacheRule):
    """Keeps the newest tokens; ``fault`` says how it is broken."""

    fault: str = ""
    budget: int | float = 0.5

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return each token's place."""
        scores = seen.index.float()
        if self.fault == "NaN":
            scores = scores / (scores - 1).clamp(min=0) * 0
        if self.fault == "in place":
            keys.mul_(2.0)
        if self.fault == "all slots":
            scores = scores + keys.mean()
        if self.fault == "batch":
            scores = scores + seen.total.max()
        return scores


@final
@dataclass(frozen=True)
class KeepsMore(CacheRule):
    """Says another number than it keeps, every second time it is asked."""

    budget: int | float = 0.5

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return each token's place."""
        return seen.index.float()

    def kept(self, total: Tensor) -> Tensor:
        """Return one token more while the cache evicts."""
        import traceback

        inside = any(frame.name == "evict" for frame in traceback.extract_stack())
        return super().kept(total) + int(inside)


@final
@dataclass(frozen=True)
class Evicts(CacheRule):
    """Ignores its budget."""

    budget: int | float = 0.5

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return each token's place."""
        return seen.index.float()

    def reads_attention(self) -> int:
        """Ask for the attention of the last query."""
        return 1

    def kept(self, total: Tensor) -> Tensor:
        """Return 1 token."""
        return torch.ones_like(total)
