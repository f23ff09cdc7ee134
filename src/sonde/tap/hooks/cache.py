"""Key-value caches in the arguments of a call."""

from typing import Any

from torch import Tensor

NAMES = ("past_key_values", "cache_params", "past_key_value")


def cache_in(named: dict[str, Any]) -> Any:
    """Return the cache among the arguments of a call, or None."""
    for name in NAMES:
        if named.get(name) is not None:
            return named[name]
    return None


def cached_length(cache: Any) -> int:
    """Return how many positions a cache holds."""
    if callable(getattr(cache, "get_seq_length", None)):
        return int(cache.get_seq_length())
    if isinstance(cache, tuple | list) and cache and isinstance(cache[0], tuple | list):
        keys = cache[0][0]
        return int(keys.shape[-2]) if isinstance(keys, Tensor) else 0
    return int(bool(getattr(cache, "has_previous_state", False)))


def detach_cache(cache: Any) -> None:
    """Cut the graph behind the keys and values that a cache of layers holds; values stay."""
    for layer in getattr(cache, "layers", ()) or ():
        for name in ("keys", "values"):
            held = getattr(layer, name, None)
            if isinstance(held, Tensor) and held.requires_grad:
                setattr(layer, name, held.detach())
