"""Caches of attention layers that store their older tokens packed."""

from typing import Any

import torch
from torch import Tensor

from sonde.core.cache_packing import CachePacking, PackedTokens
from sonde.core.errors import SiteError
from sonde.tap.cache.layer import GrowingLayer


class PackingGroup:
    """Adjacent layers whose older tokens are packed together.

    Parameters
    ----------
    packing : CachePacking
    """

    def __init__(self, packing: CachePacking) -> None:
        self.packing = packing
        self.layers: list[PackingLayer] = []
        self.chunks: list[PackedTokens] = []

    def heads_of(self, layer: "PackingLayer") -> slice:
        """Return the indices of a layer's heads among the heads packed together."""
        sizes = [x.keys.shape[1] for x in self.layers if x.keys is not None]
        number = self.layers.index(layer)
        first = sum(sizes[:number])
        return slice(first, first + sizes[number]) if len(self.layers) > 1 else slice(None)

    def stacked(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the oldest unpacked keys and values, and which of them are real.

        The heads of each layer stand behind those of the layer before; keys are turned back if the
        packing asks for it.
        """
        real = self.layers[0].real
        assert real is not None
        first = self.layers[0].n_packed
        columns = slice(first, first + size)
        keys, values = list[Tensor](), list[Tensor]()
        for layer in self.layers:
            assert layer.keys is not None
            assert layer.values is not None
            keys.append(layer.turned(layer.keys[:, :, :size], columns, back=True))
            values.append(layer.values[:, :, :size])
        if len({x.shape[3] for x in keys}) + len({x.shape[3] for x in values}) > 2:
            raise SiteError(
                "caching: expected heads of the same width in all layers that are packed "
                f"together, got widths {sorted({x.shape[3] for x in keys})}. Pack each layer "
                "by itself: layers=1."
            )
        return torch.cat(keys, 1), torch.cat(values, 1), real.mask[:, columns]

    def pack(self) -> None:
        """Pack tokens of all layers, chunk by chunk, except the newest ``recent`` tokens."""
        size, last = self.packing.chunk, self.layers[-1]
        while last.knows_rotation and last.n_seen - last.n_packed >= self.packing.recent + size:
            self.chunks.append(self.packing.pack(*self.stacked(size)))
            for layer in self.layers:
                layer.drop(size)


class PackingLayer(GrowingLayer):
    """Packed chunks of older tokens, and the newest tokens unpacked.

    A call attends to its own new tokens in full precision; those that are old enough by then are
    packed, and later calls read them in packed form. Chunks begin at multiples of ``chunk`` columns
    whatever the calls were.

    Parameters
    ----------
    group : PackingGroup
        The layers that are packed together; this layer becomes the last of them.
    """

    def __init__(self, group: PackingGroup) -> None:
        super().__init__()
        self.group = group
        group.layers.append(self)

    @property
    def needs_rotation(self) -> bool:
        """True if keys are packed as they were before the rotation."""
        return self.group.packing.before_rotation

    @property
    def knows_rotation(self) -> bool:
        """True if the keys' rotation is known, which needs the angle between two tokens."""
        return self.rotation is None or self.rotation.angle is not None

    @property
    def n_packed(self) -> int:
        """Number of packed columns."""
        return self.n_seen - (0 if self.keys is None else self.keys.shape[2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values and return those of all tokens."""
        self.append(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        keys, values = self.keys, self.values
        if self.group.chunks:
            heads = self.group.heads_of(self)
            older = [chunk.unpack(heads) for chunk in self.group.chunks]
            turned = self.turned(torch.cat([k for k, _ in older], 2), slice(0, self.n_packed))
            keys = torch.cat([turned, keys], 2)
            values = torch.cat([*(v for _, v in older), values], 2)
        if self is self.group.layers[-1]:
            with torch.no_grad():
                self.group.pack()
        return keys, values

    def turned(self, keys: Tensor, columns: slice, back: bool = False) -> Tensor:
        """Return the keys of some columns rotated as the attention layer does, or rotated back."""
        if self.rotation is None or not self.needs_rotation:
            return keys
        assert self.real is not None
        return self.rotation.turned(keys, self.real.index[:, columns].clamp(min=0), back)

    def drop(self, size: int) -> None:
        """Drop the oldest tokens after they were packed."""
        assert self.keys is not None
        assert self.values is not None
        # Copies: a view would keep the memory of what was packed.
        self.keys = self.keys[:, :, size:].clone()
        self.values = self.values[:, :, size:].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next call attends to, and the first key's position."""
        return self.n_seen + query_length, 0

    def reset(self) -> None:
        """Drop all texts."""
        super().reset()
        self.group.chunks = []

    def over_rows(self, change: Any) -> None:
        """Repeat rows, keep some, or reorder them."""
        super().over_rows(change)
        if self is self.group.layers[0]:
            self.group.chunks = [chunk.over_rows(change) for chunk in self.group.chunks]

    @property
    def size_bytes(self) -> int:
        """Bytes of the newest tokens; the first layer of a group also counts all its chunks."""
        if self is not self.group.layers[0]:
            return super().size_bytes
        packed = sum(chunk.size_bytes for chunk in self.group.chunks)
        return super().size_bytes + packed + self.group.packing.size_bytes
