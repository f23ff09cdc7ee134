"""Match calls of a model to texts: generation steps, and rows reordered by beam search."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.tap.hooks.cache import cache_in, counts_positions
from sonde.tap.hooks.call import CallArguments
from sonde.tap.hooks.latest import Latest
from sonde.tap.hooks.of_caches import OfCaches
from sonde.tap.hooks.outputs import leaves


@dataclass(eq=False)
class GrowingTexts:
    """Texts that one call begins and later calls continue.

    Attributes
    ----------
    prompt_length : int
        Tokens of the first call, padding among them.
    n_first : int
        Examples of the first call.
    origin : Int[Tensor, "example"]
        Which example of the first call each example goes on from.
    step : int
        How many calls went before on the same texts.
    grows : bool
        Whether each call reads whole texts again, as without a cache.
    decided : Float[Tensor, "example"] or None
        How far a gate is open for each example of the first call.
    n_read : int
        Tokens that all calls so far read.
    """

    prompt_length: int
    n_first: int
    origin: Int[Tensor, "example"]
    step: int = 0
    grows: bool = False
    decided: Float[Tensor, "example"] | None = None
    n_read: int = 0
    ids: Tensor | None = None

    @staticmethod
    def begun(call: CallArguments) -> "GrowingTexts":
        """Return the texts of a first call."""
        given = (x for x in (call.fed, *leaves(call.named).values()) if x is not None and x.ndim)
        n = len(next(given, torch.zeros(1)))
        length = 0 if call.fed is None else call.fed.shape[-1]
        return GrowingTexts(length, n, torch.arange(n), n_read=length, ids=call.fed)

    def go_on(self, call: CallArguments, parent: Tensor | None = None) -> None:
        """Add a call; ``parent`` is the earlier example that each example continues."""
        self.step, fed = self.step + 1, call.fed
        self.n_read += 0 if fed is None else fed.shape[-1]
        if parent is None and fed is not None and len(fed) != len(self.origin):
            n, before = len(fed), len(self.origin)  # as often as cache.batch_repeat_interleave
            parent = torch.arange(n) * before // n
        if parent is not None:
            self.origin = self.origin[parent.cpu()]
        self.grows, self.ids = call.past == 0, fed

    def follows(self, call: CallArguments) -> Int[Tensor, "example"] | None:
        """Return each text's index in the last call if all texts grew by a token, else None."""
        before, fed = self.ids, call.fed
        if before is None or fed is None or fed.ndim != 2 or before.ndim != 2:
            return None
        if fed.shape[1] != before.shape[1] + 1 or fed.device != before.device:
            return None
        fed = fed[:, :-1]
        if fed.shape == before.shape and torch.equal(fed, before):
            return torch.arange(len(fed))
        same = (fed[:, None] == before[None]).all(dim=2)
        return same.to(torch.uint8).argmax(dim=1) if bool(same.any(dim=1).all()) else None


class TextLog:
    """Stores the texts of each cache, and those of each caller's last call."""

    def __init__(self) -> None:
        self._of_cache: OfCaches[GrowingTexts] = OfCaches()
        self._current: Latest[GrowingTexts] = Latest()

    def begin(self, call: CallArguments, *, keep: bool) -> GrowingTexts | None:
        """Return the texts of a call, or None if an unknown call filled its cache."""
        cache, texts = cache_in(call.named), None
        if cache is not None and call.past:
            texts = self._of_cache.get(cache)
            if texts is None and not keep:
                return None
            if texts is not None:
                call.past = call.past if counts_positions(cache) else texts.n_read
                texts.go_on(call)
        elif cache is None:
            texts = self._grown(call)
        texts = GrowingTexts.begun(call) if texts is None else texts
        self._current.put(texts)
        self._of_cache.put(cache, texts)
        return texts

    def _grown(self, call: CallArguments) -> GrowingTexts | None:
        """Return the texts that a call reads again plus one token, the caller's own first."""
        own = self._current.own()
        for texts in [own] if own is not None else self._current.values():
            parent = texts.follows(call)
            if parent is not None:
                texts.go_on(call, parent)
                return texts
        return None

    def end(self, output: Any, texts: GrowingTexts) -> None:
        """Store the cache that a call returns, with its texts."""
        if isinstance(output, Mapping):
            self._of_cache.put(cache_in(dict(output)), texts)
