"""Attention layers of transformers that get their kernel from its ``AttentionInterface``.

While anything is watched, the interface hands out a pass-through around the kernel that it would
have handed out. The kernel runs as it is, on the tensors that it was given; probabilities are
computed beside it, by the class's own explicit function. If a hook changes the
probabilities, the heads are computed from the changed probabilities.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, partialmethod
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.tap.attention.figures import figures
from sonde.tap.attention.watching import WatchedAttention, is_anything_watched
from sonde.tap.hooks.cache import cache_in
from sonde.tap.hooks.outputs import arguments

EXPLICIT = "eager"
WITH_MASKS = (EXPLICIT, "sdpa")
"""Kernels that are given a mask of queries and keys, or none."""
OTHER_TEXT = ("key_value_states", "encoder_hidden_states", "cross_attention_states")
Kernel = Callable[..., Any]

_lock = threading.Lock()
_AROUND: ContextVar[tuple[Callable[..., Any], ...]] = ContextVar("sonde_kernels", default=())
_around_all: tuple[Callable[..., Any], ...] = ()
_original: list[Kernel] = []
_readers = 0


def hold_interface() -> None:
    """Return wrapped kernels from now on; each call needs one ``release_interface``."""
    global _readers
    with _lock:
        _readers += 1
        modeling = sys.modules.get("transformers.modeling_utils")
        if not _original and modeling is not None:
            interface = modeling.AttentionInterface
            _original.append(interface.get_interface)
            interface.get_interface = partialmethod(_get_interface, _original[0])


@contextlib.contextmanager
def kernels_through(around: Callable[..., Any], *, here: bool = True) -> Iterator[None]:
    """Run kernels through a function inside a ``with`` block.

    Parameters
    ----------
    around : callable
        ``around(kernel, implementation, module, query, key, value, mask, ...)`` gives what the
        kernel would give.
    here : bool, default=True
        For kernels that this context runs alone; without, for all, of every model.
    """
    global _around_all
    hold_interface()
    if here:
        _AROUND.set((*_AROUND.get(), around))
    else:
        with _lock:
            _around_all = (*_around_all, around)
    try:
        yield
    finally:
        _AROUND.set(tuple(x for x in _AROUND.get() if x is not around))
        with _lock:
            _around_all = tuple(x for x in _around_all if x is not around)
        release_interface()


def release_interface() -> None:
    """Undo one ``hold_interface``."""
    global _readers
    with _lock:
        _readers -= 1
        if _readers == 0 and _original:
            modeling = sys.modules["transformers.modeling_utils"]
            modeling.AttentionInterface.get_interface = _original.pop()


def _get_interface(
    interface: Any, original: Callable[..., Kernel], attn_implementation: str, default: Kernel
) -> Kernel:
    """Return the kernel, wrapped if an attention layer is watched."""
    kernel = original(interface, attn_implementation, default)
    for around in (*_around_all, *_AROUND.get()):
        kernel = partial(around, kernel, attn_implementation)
    if not is_anything_watched():
        return kernel
    return partial(attend, kernel, default, attn_implementation)


@dataclass(frozen=True)
class KeySource:
    """Origin of the keys in one attention call.

    Parameters
    ----------
    past : int, default=0
        Keys in the cache before the call.
    cached : bool, default=False
        Whether a cache holds the keys that the kernel is given.
    same_text : bool, default=True
        Whether queries and keys are of one text.
    known : bool, default=False
        Whether all keys were there before the call.
    """

    past: int = 0
    cached: bool = False
    same_text: bool = True
    known: bool = False

    def new(self, n_queries: int, n_keys: int) -> slice:
        """Return the slice of the new keys among all keys of a kernel."""
        if self.known:
            return slice(0, 0)
        if not self.same_text or n_keys == n_queries:
            return slice(0, n_keys)
        start = self.past if self.past + n_queries <= n_keys else n_keys - n_queries
        return slice(start, start + n_queries)


def source_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KeySource:
    """Return the origin of the keys in an attention layer's call."""
    named = arguments(module, args, kwargs)
    cache, layer = cache_in(named), getattr(module, "layer_idx", None)
    same_text = all(named.get(name) is None for name in OTHER_TEXT)
    if cache is None or not callable(getattr(cache, "get_seq_length", None)):
        return KeySource(same_text=same_text)
    is_updated = not same_text and bool(getattr(cache, "is_updated", {}).get(layer))
    return KeySource(int(cache.get_seq_length(layer or 0)), True, same_text, is_updated)


def attend(
    kernel: Kernel,
    explicit: Kernel,
    implementation: str | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a kernel, (example, head, position, width) to (example, position, head, width)."""
    watched = WatchedAttention.find(module)
    if watched is None:
        return kernel(module, query, key, value, attention_mask, *args, **kwargs)
    source = watched.first.notes.get(id(module), KeySource())
    query = _seen(watched, "queries", query)
    new = source.new(query.shape[2], key.shape[2])
    key = _seen_new(watched, "keys", key, new, source)
    value = _seen_new(watched, "values", value, new, source)
    rest = attention_mask, *args
    out: Any = None
    if watched.wants("probs"):
        if kernel is explicit and not kwargs.get("dropout"):
            out = explicit(module, query, key, value, *rest, **kwargs)
            (expected, probs), seen = out[:2], in_sight(query, key, attention_mask, False)
        else:
            require_mask(implementation, attention_mask, module)
            causal = kwargs.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            causal = causal and kernel is not explicit  # the explicit function adds masks alone
            seen = in_sight(query, key, attention_mask, causal)
            rest = _additive(attention_mask, seen, query), *args
            kept = kwargs | ({"dropout": 0.0} if "dropout" in kwargs else {})
            expected, probs = explicit(module, query, key, value, *rest, **kept)[:2]
        changed = _seen_probs(watched, probs, seen, new.start if source.same_text else None)
        if changed is not probs:
            changed = _dropped(changed, 0.0 if out else kwargs.get("dropout", 0.0))
            out = _from_probs(changed, probs, value, expected, module), changed
    if out is None:
        out = kernel(module, query, key, value, attention_mask, *args, **kwargs)
    heads = watched.seen("heads", out[0]) if watched.wants("heads") else out[0]
    return out if heads is out[0] else (heads, *out[1:])


def _seen(watched: WatchedAttention, port: str, x: Tensor, *, of_encoder: bool = False) -> Tensor:
    if not watched.wants(port):
        return x
    given = x.transpose(1, 2)
    left = watched.seen(port, given, of_encoder=of_encoder)
    return x if left is given else left.transpose(1, 2)


def _seen_new(
    watched: WatchedAttention, port: str, x: Tensor, new: slice, source: KeySource
) -> Tensor:
    """Return keys or values after hooks changed the new ones; a cache stores the changes too."""
    if new.start == new.stop or not watched.wants(port):
        return x
    given = x[:, :, new]
    left = _seen(watched, port, given, of_encoder=not source.same_text)
    if left is given:
        return x
    if source.cached:
        x[:, :, new] = left  # the tensor of the cache: later calls go on from what was changed
        return x
    return torch.cat([x[:, :, : new.start], left, x[:, :, new.stop :]], 2)


def _seen_probs(
    watched: WatchedAttention, probs: Tensor, seen: Tensor | None, first_query: int | None
) -> Tensor:
    """Return probabilities, (example, head, query, key), after hooks changed them."""
    given = probs.transpose(1, 2)
    in_sight = None if seen is None else seen[..., : probs.shape[-1]]
    measures = figures(given, in_sight, first_query)
    left = watched.seen("probs", given, measures, in_sight=in_sight)
    return probs if left is given else left.transpose(1, 2)


def _from_probs(
    changed: Tensor, probs: Tensor, value: Tensor, expected: Tensor, module: nn.Module
) -> Tensor:
    """Return the heads computed from changed probabilities, (example, position, head, width)."""
    every = value.repeat_interleave(probs.shape[1] // value.shape[1], 1)
    with torch.no_grad():
        off = float((_heads(probs, every) - expected).abs().max())
        bound = 8 * torch.finfo(probs.dtype).eps * float(every.abs().max())
    if not off <= bound:
        raise SiteError(
            f"editing: the head outputs of {type(module).__name__} are not the product of its "
            f"probabilities and values (difference {off:.2g}), so an edit of the "
            "probabilities cannot be applied. Edit the port heads instead."
        )
    return _heads(changed, every)


def _heads(probs: Tensor, value: Tensor) -> Tensor:
    return (probs @ value).transpose(1, 2).contiguous()


def require_mask(implementation: str | None, mask: Any, module: nn.Module) -> None:
    """Raise a ``SiteError`` unless a kernel receives one mask per query, or no mask."""
    if not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)):
        got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise SiteError(
            f"Site: probabilities of {type(module).__name__} need a mask of (example, head, query, "
            f"key) or none, got {got}. Call the model without a mask of your own."
        )
    if implementation not in WITH_MASKS:
        raise SiteError(
            f"Site: probabilities of {type(module).__name__} need an attention kernel that "
            f"takes a mask for each query, got {implementation!r}. Load the model with "
            "attn_implementation='sdpa'."
        )


def in_sight(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Return the keys visible to each query, (example or 1, head or 1, query, key), or None."""
    if mask is not None:
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    n_queries, n_keys = query.shape[2], key.shape[2]
    if not causal or n_queries == 1:
        return None
    return torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool, device=query.device).tril()


def _additive(mask: Tensor | None, seen: Tensor | None, query: Tensor) -> Tensor | None:
    """Return the mask that an explicit attention function adds to its scores."""
    if seen is None or (mask is not None and mask.dtype != torch.bool):
        return mask
    hidden = torch.finfo(query.dtype).min
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, hidden)


def _dropped(probs: Tensor, share: float) -> Tensor:
    return nn.functional.dropout(probs, share) if share else probs
