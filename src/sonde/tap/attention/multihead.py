"""Ports of ``nn.MultiheadAttention``, recomputed from the inputs of a call.

The module calls fused functions that no hook sees. If a hook changes something, the output is
computed anew from there on; else the module's own output is left as it is.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.tap.attention.figures import figures
from sonde.tap.attention.watching import WatchedAttention
from sonde.tap.hooks.port_view import nested

_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)
Queries = Float[Tensor, "example query head width"]
Keys = Float[Tensor, "example key head width"]
Probs = Float[Tensor, "example query head key"]


def observe(
    module: nn.MultiheadAttention,
    watched: WatchedAttention,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None] | None:
    """Show hooks the tensors of a call; return its output if a hook changed any, else None."""
    bound = _SIGNATURE.bind(module, *args, **kwargs)
    bound.apply_defaults()
    call = _Call(module, bound.arguments)
    given = call.projected()
    lengths = call.lengths("query"), call.lengths("key"), call.lengths("value")
    ports = zip(("queries", "keys", "values"), given, lengths, strict=True)
    q, k, v = left = [watched.seen(port, x, lengths=own) for port, x, own in ports]
    is_changed = any(a is not b for a, b in zip(given, left, strict=True))
    if not is_changed and not (watched.wants("probs") or watched.wants("heads")):
        return None
    probs = call.probs(q, k)
    first = 0 if bound.arguments["query"] is bound.arguments["key"] and not call.n_more else None
    measures = figures(probs, call.in_sight, first)
    seen = watched.seen("probs", probs, measures, in_sight=call.in_sight)
    heads = call.heads(seen, v)
    kept = watched.seen("heads", heads, lengths=lengths[0])
    if not is_changed and seen is probs and kept is heads:
        return None
    return call.returned(kept, seen)


@dataclass(frozen=True, eq=False)
class _Call:
    """Arguments of one module call, by name."""

    module: nn.MultiheadAttention
    named: dict[str, Any]

    @property
    def n_more(self) -> int:
        """Number of keys that are no tokens of the text: a learned key and a zero key."""
        return int(self.module.bias_k is not None) + int(self.module.add_zero_attn)

    def lengths(self, name: str) -> list[int] | None:
        """Return the number of real positions in each example of a nested argument."""
        x = self.named[name]
        return [len(row) for row in x.unbind()] if x.is_nested else None

    def _rows(self, name: str) -> Float[Tensor, "example pos dim"]:
        x = self.named[name]
        if x.is_nested:
            return x.to_padded_tensor(0.0)
        if x.ndim == 2:
            return x[None]
        return x if self.module.batch_first else x.transpose(0, 1)

    def projected(self) -> list[Tensor]:
        """Return queries, keys and values, each (example, position, head, width)."""
        own = self.module
        weights = (own.q_proj_weight, own.k_proj_weight, own.v_proj_weight)
        if own._qkv_same_embed_dim:
            assert own.in_proj_weight is not None  # as the flag says
            weights = own.in_proj_weight.chunk(3)
        biases = (None,) * 3 if own.in_proj_bias is None else own.in_proj_bias.chunk(3)
        return [
            functional.linear(self._rows(name), weight, bias).unflatten(2, (own.num_heads, -1))  # pyright: ignore[reportArgumentType]
            for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True)
        ]

    @cached_property
    def mask(self) -> Float[Tensor, "_example _head _query key"] | None:
        """Mask that is added to the scores of the text's keys, or None without masks."""
        n, parts = self.module.num_heads, list[Tensor]()
        lengths, given = self.lengths("key"), self.named["key_padding_mask"]
        if lengths is not None:
            place = torch.arange(max(lengths))[None]
            given = (place >= torch.tensor(lengths)[:, None]).to(self.named["key"].device)
        if given is not None:
            parts.append(_additive(given, self._dtype).reshape(-1, 1, 1, given.shape[-1]))
        given = self.named["attn_mask"]
        if given is not None:
            per_head = given if given.ndim == 2 else given.unflatten(0, (-1, n))
            parts.append(_additive(per_head, self._dtype))
        return sum(parts[1:], parts[0]) if parts else None

    @property
    def _dtype(self) -> torch.dtype:
        return self.named["query"].dtype

    @cached_property
    def in_sight(self) -> Tensor | None:
        """Keys visible to each query, (example or 1, head or 1, query, key); None for all."""
        if self.mask is None:
            return None
        seen = self.mask > -torch.inf
        n_queries = self._rows("query").shape[1]
        seen = (
            seen.expand(*seen.shape[-4:-2], n_queries, -1) if seen.ndim == 4 else seen[None, None]
        )
        return functional.pad(seen, (0, self.n_more), value=True)

    def probs(self, q: Queries, k: Keys) -> Tensor:
        """Return probabilities, (example, query, head, key); keys that are no tokens come last."""
        k = self._with_more(k, self.module.bias_k)
        scores = torch.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        if self.mask is not None:
            scores = scores + functional.pad(self.mask, (0, self.n_more))
        return scores.softmax(-1).transpose(1, 2)

    def heads(self, probs: Tensor, v: Keys) -> Queries:
        """Return probabilities times values."""
        share = self.module.dropout if self.module.training else 0.0
        kept = functional.dropout(probs, share) if share else probs
        return torch.einsum("bqhk,bkhd->bqhd", kept, self._with_more(v, self.module.bias_v))

    def _with_more(self, x: Keys, bias: Tensor | None) -> Tensor:
        if bias is not None:
            x = torch.cat([x, bias.reshape(1, 1, *x.shape[2:]).expand(len(x), -1, -1, -1)], 1)
        return torch.cat([x, torch.zeros_like(x[:, :1])], 1) if self.module.add_zero_attn else x

    def returned(self, heads: Queries, probs: Probs) -> tuple[Tensor, Tensor | None]:
        """Return the module's output for these heads and probabilities."""
        layer, query = self.module.out_proj, self.named["query"]
        x = functional.linear(heads.flatten(2), layer.weight, layer.bias)
        weights = None
        if self.named["need_weights"]:
            weights = probs.mean(2) if self.named["average_attn_weights"] else probs.transpose(1, 2)
        if query.ndim == 2:
            return x[0], None if weights is None else weights[0]
        x = nested(x, self.lengths("query"))
        return x if self.module.batch_first or query.is_nested else x.transpose(0, 1), weights


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as an additive mask; true entries of a boolean mask are hidden."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
