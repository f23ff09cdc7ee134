"""Key-value caches in the arguments and the outputs of a call.

transformers calls the argument and the output ``cache`` since 5.24; before, and in code that is
loaded from elsewhere, they are ``past_key_values`` or ``cache_params``.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache as memoized
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import InputError

OLDER = ("past_key_values", "cache_params", "past_key_value")
NAMES = ("cache", *OLDER)


def cache_in(named: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments or the outputs of a call, or None."""
    for name in NAMES:
        cache = named.get(name)
        # A model of one's own may call anything "cache": a switch, a tensor.
        if cache is not None and (name in OLDER or _holds_positions(cache)):
            return cache
    return None


def cache_of(output: Any) -> Any:
    """Return the cache that a model returned, or None.

    Parameters
    ----------
    output : object
        Output of a model.
    """
    return cache_in(output) if isinstance(output, Mapping) else None


def cache_argument(model: nn.Module | Callable[..., Any]) -> str:
    """Return the name of the cache argument of a model or of its ``generate``.

    Parameters
    ----------
    model : object
        Model, or a function that is called like one.
    """
    call = model.forward if isinstance(model, nn.Module) else model
    parameters = inspect.signature(call).parameters
    return next((name for name in NAMES if name in parameters), _usual_name())


@memoized
def _usual_name() -> str:
    """Return the name of the cache argument in the installed version of transformers."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return next(name for name in NAMES if name in CausalLMOutputWithPast.__annotations__)


def _holds_positions(found: Any) -> bool:
    return callable(getattr(found, "get_seq_length", None)) or hasattr(found, "has_previous_state")


def require_no_cache(named: dict[str, Any]) -> None:
    """Raise if a call that will be repeated with other states receives a cache.

    Every forward would append to it, and the states of its tokens were made before.
    """
    if cache_in(named) is not None:
        raise InputError(
            "expected whole inputs, got a key-value cache: the states of its tokens were "
            "computed before and cannot be changed. Give the whole text, without a cache."
        )


def cached_length(cache: Any) -> int:
    """Return the number of positions in a cache, or 1 if a filled cache does not count them."""
    if callable(getattr(cache, "get_seq_length", None)):
        counts = counts_positions(cache)
        return int(cache.get_seq_length() if counts else bool(cache.has_previous_state()))
    if isinstance(cache, tuple | list) and cache and isinstance(cache[0], tuple | list):
        keys = cache[0][0]
        return int(keys.shape[-2]) if isinstance(keys, Tensor) else 0
    return int(bool(getattr(cache, "has_previous_state", False)))


def counts_positions(cache: Any) -> bool:
    """Return whether a cache counts its positions, unlike recurrent states."""
    if not callable(getattr(cache, "get_seq_length", None)):
        return isinstance(cache, tuple | list)
    try:
        cache.get_seq_length()
    except ValueError:  # transformers: layers of recurrent states alone
        return False
    return True


def detach_cache(cache: Any) -> None:
    """Detach the keys and values in a cache from their autograd graph."""
    for layer in getattr(cache, "layers", ()) or ():
        for name in ("keys", "values"):
            held = getattr(layer, name, None)
            if isinstance(held, Tensor) and held.requires_grad:
                setattr(layer, name, held.detach())
