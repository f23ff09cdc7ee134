"""Logits of a forward pass, stored to score the token that the next pass reads."""

from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.tap.hooks.cache import cache_in, cache_of
from sonde.tap.hooks.call import CallArguments


class CarriedLogits:
    """Passes the last logits of a forward pass to the pass that continues its key-value cache.

    Beam search changes the order of a cache's rows between two forwards: the logits follow,
    matched by the last token's keys. A cache that was cut, as in assisted decoding, is refused.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop all logits."""
        self._said: dict[str, Tensor] = {}
        self._saying: dict[str, Tensor] = {}
        self._end, self._marks = 0, torch.zeros(0)

    def begin(self, call: CallArguments) -> None:
        """Reorder the stored logits like the call's rows; drop them if a text begins.

        Raises
        ------
        InputError
            If the call does not go on where the forward before it ended.
        """
        carried, end, marks = self._said, self._end, self._marks
        self.clear()
        if not call.past or not carried:
            return
        now = _marks(cache_in(call.named), call.past)
        order = _order(marks, now) if call.past == end else None
        if order is None:
            raise InputError(
                "Guard: the reducer 'predictions' needs the cache of the previous forward "
                f"pass with {end} tokens, got another cache with {call.past} tokens. Generate "
                "without an assistant model, or call the model on the finished text."
            )
        self._said = {key: logits[order.to(logits.device)] for key, logits in carried.items()}

    def said(self, key: str) -> Tensor | None:
        """Return a site's logits for the first token of this call, (example, vocabulary)."""
        return self._said.get(key)

    def say(self, key: str, logits: Tensor) -> None:
        """Store logits, (example, vocabulary), for the first token of the next call."""
        self._saying[key] = logits

    def end(self, call: CallArguments, output: Any) -> None:
        """Store the logits of this call if it returned a cache that can be continued."""
        saying, fed, past = self._saying, call.fed, call.past
        self.clear()
        cache = cache_in(call.named)
        cache = cache_of(output) if cache is None else cache
        if saying and cache is not None and fed is not None:
            end = past + fed.shape[-1]
            self._said, self._end, self._marks = saying, end, _marks(cache, end).clone()


def _marks(cache: Any, length: int) -> Tensor:
    """Return the last layer's keys of each row's last token, (row, ...); empty without keys."""
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None) or ()
    kept = [k for k in (getattr(la, "keys", None) for la in layers) if isinstance(k, Tensor)]
    if not kept or kept[-1].ndim != 4:
        return torch.zeros(0)
    keys = kept[-1]
    return keys[:, :, min(length, keys.shape[2]) - 1].detach()


def _order(marks: Tensor, now: Tensor) -> Tensor | None:
    """Return the earlier index of each row, or None if a row is new."""
    if marks.ndim != 3 or marks.shape[1:] != now.shape[1:]:
        return None
    same = (now[:, None] == marks[None].to(now.device)).flatten(2).all(2)
    return same.int().argmax(1) if bool(same.any(1).all()) else None
