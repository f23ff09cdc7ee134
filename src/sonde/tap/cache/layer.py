"""Cache of one attention layer: the base of all kinds, and the kind that drops tokens."""

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
    """Mask of real tokens in the texts that a cache has read.

    Parameters
    ----------
    mask : Bool[Tensor, "row column"]
        All columns, those of the running call included.
    """

    mask: Bool[Tensor, "row column"]

    @cached_property
    def index(self) -> Int[Tensor, "row column"]:
        """Index of each real token in its row, from 0; padding repeats the previous index."""
        return self.mask.int().cumsum(1, dtype=torch.int32) - 1

    @cached_property
    def number(self) -> Int[Tensor, "row column"]:
        """Index of each real token in its row, and -1 at padding."""
        return self.index.masked_fill(~self.mask, -1)

    @cached_property
    def total(self) -> Int[Tensor, "row"]:
        """Number of real tokens of each row."""
        return self.mask.sum(1)

    @cached_property
    def _keep(self) -> dict[int, tuple[CacheRule, Tensor]]:
        return {}

    def keep(self, rule: CacheRule) -> Int[Tensor, "row"]:
        """Return how many tokens of each row a rule keeps; computed once for all layers."""
        if id(rule) not in self._keep:
            self._keep[id(rule)] = rule, rule.kept(self.total)
        return self._keep[id(rule)][1]

    def columns(self, number: Int[Tensor, "row head slot"]) -> Int[Tensor, "row head slot"]:
        """Return the column of each real token by its index; -1 stays -1."""
        first = torch.searchsorted(self.index, number.flatten(1).clamp(min=0).contiguous())
        return torch.where(number < 0, -1, first.view_as(number))


class GrowingLayer(CacheLayerMixin):
    """Base of all cache layers: new tokens, rows, and the mask of real tokens."""

    is_sliding = False
    is_croppable = False
    held: tuple[str, ...] = ("keys", "values")
    """Tensors with a row for each text."""

    def __init__(self) -> None:
        super().__init__()
        self.n_seen = 0  # columns
        self.real: RealTokens | None = None
        self.is_open = True  # until its with block ends
        self.turn: Turn | None = None
        self.rotation: Rotation | None = None

    @property
    def needs_rotation(self) -> bool:
        """True if storing tokens requires the attention layer's rotation."""
        return False

    def note(self, turn: Turn, cos: Tensor, sin: Tensor) -> None:
        """Record how the columns of the running call are rotated, before they arrive."""
        assert self.real is not None
        index = self.real.index[:, self.n_seen :]
        if self.rotation is None:
            self.rotation = Rotation.of(turn, cos, sin, index)
        else:
            self.rotation = self.rotation.later(cos, sin, index)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take number type and device from the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Append new keys and values after the stored ones."""
        if self.real is None or not self.is_open:
            raise StateError(
                "caching: expected the cache to be used inside its with block and with its "
                "model, got a call after the block or of another model. Generate inside the "
                "block."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.n_seen += key_states.shape[2]
        self.keys = torch.cat([self.keys, key_states], 2)
        self.values = torch.cat([self.values, value_states], 2)

    def get_seq_length(self) -> int:
        """Return how many columns were read, the position of the next token."""
        return self.n_seen

    def get_max_cache_shape(self) -> int:
        """Return the limit under its former name in transformers."""
        return self.get_max_length()

    def get_max_length(self) -> int:
        """Return -1, since texts may be as long as the model can read."""
        return -1

    def reset(self) -> None:
        """Drop all texts."""
        self.keys = self.values = None
        self.is_initialized = False
        self.n_seen, self.real, self.rotation = 0, None, None

    def crop(self, tokens_to_remove: int) -> None:
        """Raise, since dropped or packed tokens cannot be restored."""
        if tokens_to_remove:
            raise InputError(
                "caching: expected a cache that only grows, got a request to remove tokens. "
                "Assisted decoding needs a plain cache: leave out the cache rule."
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.over_rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows."""
        self.over_rows(lambda x: x[indices.to(x.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows, as beam search does."""
        self.batch_select_indices(beam_idx)

    def over_rows(self, change: Any) -> None:
        """Repeat rows, keep some, or reorder them."""
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
        """Bytes that the layer stores between two calls."""
        tensors = [getattr(self, name) for name in self.held]
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)


class EvictingLayer(GrowingLayer):
    """Keys and values of the tokens that a rule keeps, each with its column in the text.

    Until the first token is evicted the layer holds what a plain cache holds, padding included, and
    the model's own mask stays in force.

    Parameters
    ----------
    rule : CacheRule
    """

    held = ("keys", "values", "flat_keys", "flat_values", "index", "mass", "queries", "at")

    def __init__(self, rule: CacheRule) -> None:
        super().__init__()
        self.rule = rule
        self._forget()

    @property
    def needs_rotation(self) -> bool:
        """True if the rule requires the attention layer's rotation."""
        return self.rule.reads_rotation()

    def _forget(self) -> None:
        self.n_new = 0  # columns of the running call that wait for their attention
        self.index: Tensor | None = None  # (row, head, slot); None: slots are columns
        self.flat_keys: Tensor | None = None  # (token, width), of heads that hold unlike numbers
        self.flat_values: Tensor | None = None
        self.mass: Tensor | None = None  # (row, head, slot), attention received from all queries
        self.queries: Tensor | None = None  # (row, query head, query, width), the newest
        self.at: Tensor | None = None  # (row, query), their numbers; -1: none
        self.moments: QueryMoments | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values and return all stored ones."""
        if self.n_new:
            raise SiteError(
                "caching: an attention layer changed its keys between the cache and its "
                "kernel, so tokens cannot be evicted. Use a plain cache with this model."
            )
        first = self.n_seen
        self._widen()
        self.append(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        assert self.real is not None
        self.n_new = key_states.shape[2]
        if self.index is not None:
            new = self.real.number[:, None, first:].expand(-1, self.index.shape[1], -1)
            self.index = torch.cat([self.index, new], 2)
        return self.keys, self.values

    def _widen(self) -> None:
        """Arrange each head's tokens in slots, with empty slots for shorter heads."""
        if self.index is None or self.flat_keys is None or self.flat_values is None:
            return
        at, shape = self.index >= 0, self.index.shape
        self.keys, self.values = (
            x.new_zeros(*shape, x.shape[1]).masked_scatter_(at[..., None], x)
            for x in (self.flat_keys, self.flat_values)
        )
        self.flat_keys = self.flat_values = None

    def _narrow(self) -> None:
        """Store the tokens of all heads one after another, without empty slots."""
        assert self.index is not None
        assert self.keys is not None
        assert self.values is not None
        at = self.index >= 0
        self.flat_keys, self.flat_values = self.keys[at], self.values[at]
        self.keys, self.values = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next call attends to, and the first key's position."""
        held = 0 if self.keys is None else self.keys.shape[2]
        return (held if self.index is None else self.index.shape[2]) + query_length, 0

    def reset(self) -> None:
        """Drop all texts."""
        super().reset()
        self._forget()

    def numbers(self) -> Int[Tensor, "row head slot"]:
        """Return the index of the real token in each slot; -1 for padding and empty slots."""
        if self.index is not None:
            return self.index
        assert self.keys is not None
        assert self.real is not None
        return self.real.number[:, None].expand(-1, self.keys.shape[1], -1)

    def kept(self) -> Int[Tensor, "row head slot"]:
        """Return the text column of the token in each slot; -1 for empty slots."""
        assert self.keys is not None
        assert self.real is not None
        if self.index is not None:
            return self.real.columns(self.index)
        rows, heads, slots, _ = self.keys.shape
        return torch.arange(slots, device=self.keys.device).expand(rows, heads, slots)

    def in_sight(self) -> Bool[Tensor, "row head query slot"] | None:
        """Return the mask of keys for each query of this call, or None for the model's mask."""
        if self.index is None or self.real is None:
            return None
        query = self.real.index[:, None, self.n_seen - self.n_new :, None]
        seen = (self.index >= 0)[:, :, None]
        if self.n_new > 1:
            seen = seen & (self.index[:, :, None] <= query)
        # A query at padding sees no key; kernels need one, and nobody reads what it gives.
        return seen | ~seen.any(-1, keepdim=True)

    def evict(self, query: Float[Tensor, "row query_head query width"], scale: float) -> None:
        """Drop the tokens that the rule rejects, after the running call has attended to all."""
        assert self.keys is not None
        assert self.values is not None
        assert self.real is not None
        index, keep = self.numbers(), self.real.keep(self.rule)
        attention = self._attention(query, scale, index)
        self._add_moments(query)
        self.n_new = 0
        held = (index >= 0).sum((1, 2))
        surplus = held - keep * index.shape[1]
        if bool((surplus <= 0).all()):
            return
        total, width = self.real.total, query.shape[-1]
        coming = None if self.rotation is None else Coming(self.rotation, total, width)
        seen = CachedTokens(index, total, keep, attention, self.moments, coming, scale)
        scores = self.rule.score(self.keys, self.values, seen).float()
        one_each = held == index.shape[1] * index.shape[2]
        one_each = not self.rule.by_head and bool((one_each & (surplus == index.shape[1])).all())
        slot, left = _last_lowest(scores, index) if one_each else self._stays(scores, index, seen)
        self.index = left
        self.keys, self.values = (_picked(x, slot) for x in (self.keys, self.values))
        if self.mass is not None:
            self.mass = self.mass.gather(2, slot)
        if self.rule.by_head:
            self._narrow()

    def _stays(self, scores: Tensor, index: Tensor, seen: CachedTokens) -> tuple[Tensor, Tensor]:
        """Return the slots that stay, in order, and their tokens; an empty slot has token -1."""
        if bool(scores.isnan().any()):
            raise InputError(f"{type(self.rule).__name__}.score: expected numbers, got NaN.")
        lowest = torch.finfo(scores.dtype).min
        scores = scores.clamp(min=lowest).masked_fill(index < 0, -torch.inf)
        keep = self.rule.share_out(scores, seen)
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : int(keep.max())]
        rank = torch.arange(order.shape[-1], device=order.device)
        stays = (rank < keep[..., None]) & (index.gather(2, order) >= 0)
        left, ascending = torch.where(stays, index.gather(2, order), -1).sort(-1)
        return order.gather(2, ascending), left

    def _add_moments(self, query: Tensor) -> None:
        """Add the running call's queries, rotated back, to the moments that the rule needs."""
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
        """Repeat rows, keep some, or reorder them."""
        is_flat = self.flat_keys is not None
        self._widen()
        super().over_rows(change)
        self.moments = map_tensors(self.moments, change)
        if is_flat:
            self._narrow()

    @property
    def size_bytes(self) -> int:
        """Bytes that the layer stores between two calls."""
        return super().size_bytes + sum(x.nbytes for x in leaves(self.moments))

    def _attention(self, query: Tensor, scale: float, index: Tensor) -> Any:
        """Return the attention that the rule needs, and store what later calls need."""
        wanted = self.rule.reads_attention()
        if wanted == 0:
            return None
        assert self.real is not None
        at = self.real.number[:, self.n_seen - self.n_new :]
        if wanted == "all":
            new = self._received(query, scale, index, at)
            if self.mass is not None:
                new[..., : self.mass.shape[2]] += self.mass
            self.mass = new
            return new
        if self.queries is not None and self.at is not None:
            query, at = torch.cat([self.queries, query], 2), torch.cat([self.at, at], 1)
        if at.shape[1] > wanted:
            at, newest = at.topk(wanted, 1)
            query = _picked(query, newest[:, None].expand(-1, query.shape[1], -1))
        self.queries, self.at = query, at
        return self._received(query, scale, index, at)

    def _received(
        self,
        query: Float[Tensor, "row query_head query width"],
        scale: float,
        index: Int[Tensor, "row head slot"],
        at: Int[Tensor, "row query"],
    ) -> Float[Tensor, "row head slot"]:
        """Return the attention that slots receive, summed over the real queries ``at``."""
        assert self.keys is not None
        (rows, heads, slots), total = index.shape, torch.zeros((), device=query.device)
        keys = self.keys.float().transpose(2, 3)
        index = torch.where(index < 0, torch.iinfo(index.dtype).max, index)  # nobody sees it
        first = index.amin(2)[:, :, None]
        for start in range(0, query.shape[2], CHUNK):
            part, own = query[:, :, start : start + CHUNK], at[:, start : start + CHUNK]
            # the query heads of one key head side by side, so that its keys are not repeated
            grouped = part.float().mul(scale).reshape(rows, heads, -1, part.shape[3])
            logits = (grouped @ keys).view(rows, heads, -1, own.shape[1], slots)
            # columns before all of these queries, at the start, need no mask
            n_before = int((index <= own.amin()).flatten(0, 1).all(0).cumprod(0).sum())
            hidden = index[:, :, None, None, n_before:] > own[:, None, None, :, None]
            logits[..., n_before:].masked_fill_(hidden, -torch.inf)
            probs = logits.softmax(-1)
            counts = (own[:, None] >= 0) & (own[:, None] >= first)  # its keys may all be evicted
            if not bool(counts.all()):
                probs = torch.where(counts[:, :, None, :, None], probs, 0.0)
            total = total + probs.sum((2, 3))
        return total / (query.shape[1] // heads)


def _picked(
    x: Float[Tensor, "row head slot width"], slot: Int[Tensor, "row head slot2"]
) -> Float[Tensor, "row head slot2 width"]:
    """Return the vectors in some slots of each head, copied whole."""
    rows, heads, slots, width = x.shape
    first = torch.arange(rows * heads, device=x.device).view(rows, heads, 1) * slots
    picked = x.reshape(-1, width).index_select(0, (first + slot).flatten())
    return picked.view(*slot.shape, width)


def _last_lowest(scores: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return all slots except each head's last slot of lowest score, and their tokens."""
    low, back = scores.flip(-1).min(-1, keepdim=True)
    if bool(low.isnan().any()):
        raise InputError("CacheRule.score: expected numbers, got NaN.")
    slot = torch.arange(scores.shape[-1] - 1, device=scores.device)
    slot = slot + (slot >= scores.shape[-1] - 1 - back)
    return slot, index.gather(2, slot)
