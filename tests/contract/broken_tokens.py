"""A rule of tokens that is broken in several ways."""

from dataclasses import dataclass
from typing import final

import torch

from sonde.core import InsideTokens, Reduction, TokenRule


@final
@dataclass(frozen=True)
class EveryOther(TokenRule):
    """Merges every second token into the one before; ``fault`` says how it is broken."""

    fault: str = ""

    def acts(self, block: int, n_blocks: int) -> bool:
        """Return True for the first block."""
        return block == 0

    def reduce(self, seen: InsideTokens) -> Reduction:
        """Return the token before as the leader of each odd one."""
        own = torch.arange(seen.real.shape[1]).expand_as(seen.real)
        leader = own - own % 2
        if self.fault == "chain":
            leader = (own - 1).clamp(min=0)
        if self.fault == "padding" and float(seen.keys.amax()) > 100:
            leader = own
        if self.fault == "batch" and len(own) > 1:
            leader = own
        if self.fault == "width" and seen.real.shape[1] > 9:
            leader = own - own % 3
        return Reduction(leader, torch.ones_like(seen.size))
