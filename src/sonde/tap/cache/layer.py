"""The cache of one attention layer: what all forms share, and the one that evicts by a rule."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from sonde.core.cache_rule import CachedTokens, CacheRule
from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.query_moments import QueryMoments
from sonde.core.state import leaves, map_tensors
from sonde.tap.cache.rotation import Coming, Rotation, Turn

CHUNK = 256
"""Queries whose attention is computed at once."""


@dataclass(frozen=True, eq=False)
class RealTokens:
    """Which columns of the texts that a cache has seen are real tokens.

    Parameters
    ----------
    mask : Bool[Tensor, "row column"]
        All columns, those of the running call included.
    """

    mask: Bool[Tensor, "row column"]

    @cached_property
    def index(self) -> Int[Tensor, "row column"]:
        """Number of each real token in its row, from 0."""
        return self.mask.long().cumsum(1) - 1

    @cached_property
    def total(self) -> Int[Tensor, "row"]:
        """Number of real tokens of each row."""
        return self.mask.sum(1)

    def of(self, columns: Int[Tensor, "row head slot"]) -> Int[Tensor, "row head slot"]:
        """Return the number of the real token in each slot, -1 for padding and empty slots."""
        flat = columns.clamp(min=0).flatten(1)
        number = torch.where(self.mask.gather(1, flat), self.index.gather(1, flat), -1)
        return torch.where(columns < 0, -1, number.view_as(columns))


class GrowingLayer(CacheLayerMixin):
    """What the cache of one layer needs in every form: new tokens, rows, and which are real."""

    is_sliding = False
    is_croppable = False
    held: tuple[str, ...] = ("keys", "values")
    """Tensors with a row for each text."""

    def __init__(self) -> None:
        super().__init__()
        self.n_seen = 0  # columns
        self.real: RealTokens | None = None
        self.turn: Turn | None = None
        self.rotation: Rotation | None = None

    @property
    def needs_rotation(self) -> bool:
        """Whether the form in which tokens are held asks how the attention rotates."""
        return False

    def note(self, turn: Turn, cos: Tensor, sin: Tensor) -> None:
        """Note how the columns of the running call are rotated, before they arrive."""
        assert self.real is not None
        index = self.real.index[:, self.n_seen :]
        if self.rotation is None:
            self.rotation = Rotation.of(turn, cos, sin, index)
        else:
            self.rotation = self.rotation.later(cos, sin, index)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take type and device from the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Add new keys and values behind those that are held."""
        if self.real is None:
            raise StateError(
                "caching: expected the cache to be used inside its with block, got a call of the "
                "model after it, or of another model. Keep generating inside the block."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.n_seen += key_states.shape[2]
        self.keys = torch.cat([self.keys, key_states], 2)
        self.values = torch.cat([self.values, value_states], 2)

    def get_seq_length(self) -> int:
        """Return how many columns were seen, which is where positions go on."""
        return self.n_seen

    def get_max_length(self) -> int:
        """Return -1: texts may be as long as the model can read."""
        return -1

    def reset(self) -> None:
        """Forget all texts."""
        self.keys = self.values = None
        self.is_initialized = False
        self.n_seen, self.real, self.rotation = 0, None, None

    def crop(self, tokens_to_remove: int) -> None:
        """Raise: tokens that were evicted or packed cannot come back."""
        if tokens_to_remove:
            raise InputError(
                "caching: expected a cache that only grows, got a request to take tokens back. "
                "Assisted decoding needs a plain cache."
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.over_rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self.over_rows(lambda x: x[indices.to(x.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put rows into another order, as beam search does."""
        self.batch_select_indices(beam_idx)

    def over_rows(self, change: Any) -> None:
        """Repeat rows, keep some, or put them into another order."""
        for name in self.held:
            x = getattr(self, name)
            if x is not None:
                setattr(self, name, change(x))
        if self.real is not None:
            self.real = RealTokens(change(self.real.mask))
        if self.rotation is not None:
            self.rotation = self.rotation.over_rows(change)

    @property
    def size_bytes(self) -> int:
        """Bytes of all that the layer holds from one call to the next."""
        found = [getattr(self, name) for name in self.held]
        return sum(x.numel() * x.element_size() for x in found if x is not None)


class EvictingLayer(GrowingLayer):
    """Keys and values of the tokens that a rule keeps, each with its column in the text.

    Until the first token is evicted the layer holds what a plain cache holds, padding included, and
    the model's own mask stays in force.

    Parameters
    ----------
    rule : CacheRule
    """

    held = ("keys", "values", "columns", "mass", "queries", "query_columns")

    def __init__(self, rule: CacheRule) -> None:
        super().__init__()
        self.rule = rule
        self._forget()

    @property
    def needs_rotation(self) -> bool:
        """Whether the rule asks how the attention rotates."""
        return self.rule.reads_rotation

    def _forget(self) -> None:
        self.n_new = 0  # columns of the running call that wait for their attention
        self.columns: Tensor | None = None  # (row, head, slot); None: slots are columns
        self.mass: Tensor | None = None  # (row, head, slot), attention received from all queries
        self.queries: Tensor | None = None  # (row, query head, query, width), the newest
        self.query_columns: Tensor | None = None  # (row, query); -1: none
        self.moments: QueryMoments | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values and return all that are held."""
        if self.n_new:
            raise SiteError(
                "caching: an attention changed its keys between the cache and its kernel, so "
                "tokens cannot be evicted. Use a plain cache with this model."
            )
        first = self.n_seen
        self.append(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.n_new = key_states.shape[2]
        if self.columns is not None:
            new = torch.arange(first, self.n_seen, device=key_states.device)
            self.columns = torch.cat(
                [self.columns, new.expand(*self.columns.shape[:2], self.n_new)], 2
            )
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next call attends to, and where they start."""
        held = 0 if self.keys is None else self.keys.shape[2]
        return held + query_length, 0

    def reset(self) -> None:
        """Forget all texts."""
        super().reset()
        self._forget()

    def kept(self) -> Int[Tensor, "row head slot"]:
        """Return the column of the text that each slot holds; -1 for empty slots."""
        if self.columns is not None:
            return self.columns
        assert self.keys is not None
        rows, heads, slots, _ = self.keys.shape
        return torch.arange(slots, device=self.keys.device).expand(rows, heads, slots)

    def in_sight(self) -> Bool[Tensor, "row head query slot"] | None:
        """Return which keys each query of the running call sees; None if the model's mask holds."""
        if self.columns is None or self.real is None:
            return None
        held = self.real.of(self.columns) >= 0
        query = torch.arange(self.n_seen - self.n_new, self.n_seen, device=held.device)
        seen = held[:, :, None] & (self.columns[:, :, None] <= query[:, None])
        # A query at padding sees no key; kernels need one, and nobody reads what it gives.
        return seen | ~seen.any(-1, keepdim=True)

    def evict(self, query: Float[Tensor, "row query_head query width"], scale: float) -> None:
        """Drop the tokens that the rule gives up, after the running call has attended to all."""
        assert self.keys is not None
        assert self.values is not None
        assert self.real is not None
        columns = self.kept()
        index, keep = self.real.of(columns), self.rule.kept(self.real.total)
        attention = self._attention(query, scale, columns, index)
        self._add_moments(query)
        self.n_new = 0
        if bool(((index >= 0).sum(-1) <= keep[:, None]).all()):
            return
        total, width = self.real.total, query.shape[-1]
        knows = self.rule.reads_rotation and self.rotation is not None
        coming = Coming(self.rotation, total, width) if knows and self.rotation else None
        seen = CachedTokens(index, total, keep, attention, self.moments, coming, scale)
        scores = self.rule.score(self.keys, self.values, seen).float()
        if bool(scores.isnan().any()):
            raise InputError(f"{type(self.rule).__name__}.score: expected numbers, got NaN.")
        lowest = torch.finfo(scores.dtype).min
        scores = scores.clamp(min=lowest).masked_fill(index < 0, -torch.inf)
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : int(keep.max())]
        rank = torch.arange(order.shape[-1], device=order.device)
        stays = (rank < keep[:, None, None]) & (index.gather(2, order) >= 0)
        left, ascending = torch.where(stays, columns.gather(2, order), -1).sort(-1)
        slot = order.gather(2, ascending)
        self.columns = left
        self.keys, self.values = (
            x.gather(2, slot[..., None].expand(-1, -1, -1, x.shape[-1]))
            for x in (self.keys, self.values)
        )
        if self.mass is not None:
            self.mass = self.mass.gather(2, slot)

    def _add_moments(self, query: Tensor) -> None:
        """Add the queries of the running call, turned back, to the moments that the rule needs."""
        first = self.rule.reads_queries()
        if first is None:
            return
        assert self.real is not None
        columns = slice(self.n_seen - self.n_new, None)
        index = self.real.index[:, columns]
        counts = self.real.mask[:, columns] & (index >= first)
        if not bool(counts.any()) and self.moments is not None:
            return
        query = query.float() if query.dtype != torch.float64 else query
        if self.rotation is not None and self.rotation.angle is not None:
            query = self.rotation.turned(query, index, back=True)
        new = QueryMoments.of(query, counts)
        self.moments = new if self.moments is None else self.moments.merge(new)

    def over_rows(self, change: Any) -> None:
        """Repeat rows, keep some, or put them into another order."""
        super().over_rows(change)
        self.moments = map_tensors(self.moments, change)

    @property
    def size_bytes(self) -> int:
        """Bytes of all that the layer holds from one call to the next."""
        return super().size_bytes + sum(x.nbytes for x in leaves(self.moments))

    def _attention(self, query: Tensor, scale: float, columns: Tensor, index: Tensor) -> Any:
        """Return the attention that the rule asks for, and keep what later calls need of it."""
        wanted, first = self.rule.reads_attention(), self.n_seen - self.n_new
        if wanted == 0:
            return None
        assert self.real is not None
        at = torch.arange(first, self.n_seen, device=query.device).expand(len(query), -1)
        at = torch.where(self.real.mask[:, first:], at, -1)
        if wanted == "all":
            new = self._received(query, scale, columns, index, at)
            if self.mass is not None:
                new[..., : self.mass.shape[2]] += self.mass
            self.mass = new
            return new
        if self.queries is not None and self.query_columns is not None:
            query = torch.cat([self.queries, query], 2)
            at = torch.cat([self.query_columns, at], 1)
        at, newest = at.topk(min(wanted, at.shape[1]), 1)
        where = newest[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
        self.queries, self.query_columns = query.gather(2, where), at
        return self._received(self.queries, scale, columns, index, at)

    def _received(
        self,
        query: Float[Tensor, "row query_head query width"],
        scale: float,
        columns: Int[Tensor, "row head slot"],
        index: Int[Tensor, "row head slot"],
        at: Int[Tensor, "row query"],
    ) -> Float[Tensor, "row head slot"]:
        """Return the attention of queries at columns ``at``, summed over those that are real."""
        assert self.keys is not None
        rows, heads = self.keys.shape[:2]
        total = torch.zeros(columns.shape, dtype=torch.float32, device=query.device)
        keys = self.keys.float().transpose(2, 3)[:, :, None]
        for start in range(0, query.shape[2], CHUNK):
            part, own = query[:, :, start : start + CHUNK], at[:, start : start + CHUNK]
            grouped = part.float().unflatten(1, (heads, -1))
            logits = grouped @ keys * scale  # (row, head, query head of it, query, slot)
            hidden = (index[:, :, None] < 0) | (columns[:, :, None] > own[:, None, :, None])
            probs = logits.masked_fill(hidden[:, :, None], -torch.inf).softmax(-1)
            seen = ~hidden.all(-1, keepdim=True)[:, :, None]  # its keys may all be evicted
            real = (own >= 0)[:, None, None, :, None] & seen
            total += torch.where(real, probs, 0.0).sum(3).mean(2)
        return total.view(rows, heads, -1)
