"""The cache of one attention layer that holds its older tokens in packed form."""

from typing import Any

import torch
from torch import Tensor

from sonde.core.cache_packing import CachePacking, PackedTokens
from sonde.tap.cache.layer import GrowingLayer


class PackingLayer(GrowingLayer):
    """Packed chunks of older tokens, and the newest tokens as they are.

    A call attends to its own new tokens in full precision; those that are old enough by then are
    packed, and later calls read them in packed form. Chunks begin at multiples of ``chunk`` columns
    whatever the calls were.

    Parameters
    ----------
    packing : CachePacking
    """

    def __init__(self, packing: CachePacking) -> None:
        super().__init__()
        self.packing = packing
        self.chunks: list[PackedTokens] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values and return those of all tokens."""
        self.append(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        older = [chunk.unpack() for chunk in self.chunks]
        keys = torch.cat([*(k for k, _ in older), self.keys], 2)
        values = torch.cat([*(v for _, v in older), self.values], 2)
        with torch.no_grad():
            self._pack()
        return keys, values

    def _pack(self) -> None:
        """Pack chunks of tokens that are older than the newest ones."""
        assert self.keys is not None
        assert self.values is not None
        assert self.real is not None
        size = self.packing.chunk
        while self.keys.shape[2] >= self.packing.recent + size:
            first = self.n_seen - self.keys.shape[2]
            real = self.real.mask[:, first : first + size]
            chunk = self.keys[:, :, :size], self.values[:, :, :size]
            self.chunks.append(self.packing.pack(*chunk, real))
            # Copies: a view would keep the memory of what was packed.
            self.keys = self.keys[:, :, size:].clone()
            self.values = self.values[:, :, size:].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next call attends to, and where they start."""
        return self.n_seen + query_length, 0

    def reset(self) -> None:
        """Forget all texts."""
        super().reset()
        self.chunks = []

    def over_rows(self, change: Any) -> None:
        """Repeat rows, keep some, or put them into another order."""
        super().over_rows(change)
        self.chunks = [chunk.over_rows(change) for chunk in self.chunks]

    @property
    def size_bytes(self) -> int:
        """Bytes of the newest tokens and of all chunks."""
        return super().size_bytes + sum(chunk.size_bytes for chunk in self.chunks)
