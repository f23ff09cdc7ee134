"""Key-value caches in the arguments of a call."""

from typing import Any

from torch import Tensor

from sonde.core.errors import InputError

NAMES = ("past_key_values", "cache_params", "past_key_value")


def cache_in(named: dict[str, Any]) -> Any:
    """Return the cache among the arguments of a call, or None."""
    for name in NAMES:
        if named.get(name) is not None:
            return named[name]
    return None


def require_no_cache(named: dict[str, Any]) -> None:
    """Refuse a cache among the arguments of a call that is to be repeated with other states.

    Every forward would append to it, and the states of its tokens were made before.
    """
    if cache_in(named) is not None:
        raise InputError(
            "expected whole inputs, got a key-value cache: the states of its tokens were made "
            "before and cannot be changed. Give the whole text, without past_key_values."
        )


def cached_length(cache: Any) -> int:
    """Return how many positions a cache holds; 1 of a filled one that does not count them."""
    if callable(getattr(cache, "get_seq_length", None)):
        counts = counts_positions(cache)
        return int(cache.get_seq_length() if counts else bool(cache.has_previous_state()))
    if isinstance(cache, tuple | list) and cache and isinstance(cache[0], tuple | list):
        keys = cache[0][0]
        return int(keys.shape[-2]) if isinstance(keys, Tensor) else 0
    return int(bool(getattr(cache, "has_previous_state", False)))


def counts_positions(cache: Any) -> bool:
    """Return whether a cache tells how many positions it holds; recurrent states do not."""
    if not callable(getattr(cache, "get_seq_length", None)):
        return isinstance(cache, tuple | list)
    try:
        cache.get_seq_length()
    except ValueError:  # transformers: layers of recurrent states alone
        return False
    return True


def detach_cache(cache: Any) -> None:
    """Cut the graph behind the keys and values that a cache of layers holds; values stay."""
    for layer in getattr(cache, "layers", ()) or ():
        for name in ("keys", "values"):
            held = getattr(layer, name, None)
            if isinstance(held, Tensor) and held.requires_grad:
                setattr(layer, name, held.detach())
