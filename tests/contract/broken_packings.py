"""A packing of key-value caches that is broken in several ways."""

from dataclasses import dataclass, replace
from typing import final

import torch

from sonde.core import CachePacking, PackedTokens

CALLS: list[int] = []
"""One entry for each call of a packing that grows."""


@final
@dataclass(frozen=True)
class Held(PackedTokens):
    keys: torch.Tensor
    values: torch.Tensor
    fault: str
    size: int

    def unpack(self, heads=slice(None)):
        heads = slice(0, heads.stop - 1) if self.fault == "heads" and heads.stop else heads
        keys, values = self.keys[:, heads], self.values[:, heads]
        return (keys.float(), values.float()) if self.fault == "double" else (keys, values)

    def over_rows(self, change):
        if self.fault == "order":
            return self
        return replace(self, keys=change(self.keys), values=change(self.values))

    @property
    def size_bytes(self):
        return self.size


@final
@dataclass(frozen=True)
class Rounds(CachePacking):
    """Keeps numbers as they are; ``fault`` says how it is broken."""

    fault: str = ""
    chunk: int = 3
    recent: int = 1

    @property
    def setting(self):
        return "whole"

    def pack(self, keys, values, real):
        size = keys.nbytes + values.nbytes
        if self.fault == "in place":
            keys.mul_(0.5)
        if self.fault == "padding":
            keys = keys - keys.mean(2, keepdim=True)
        if self.fault == "batch":
            keys = keys - keys.mean(0, keepdim=True)
        if self.fault == "grows":
            CALLS.append(1)
            size += len(CALLS)
        return Held(keys, values, self.fault, size)
