"""Shared code of studies on key-value caches: source-code texts, and the cost of smaller caches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import sonde
from sonde import Model
from sonde.data import rows_of
from sonde.tap import cache_argument

PROMPT, NEW = 192, 64


def pieces(n: int, seed: int) -> Int[Tensor, "text pos"]:
    """Return random pieces of the standard library's test part, as bytes."""
    draw = np.random.default_rng(seed)
    files = [r["text"] for r in rows_of("sonde:stdlib/test-all") if len(r["text"]) > 4000]
    found: list[list[int]] = []
    while len(found) < n:
        text = files[int(draw.integers(len(files)))].encode()
        at = int(draw.integers(len(text) - PROMPT - NEW))
        found.append(list(text[at : at + PROMPT + NEW]))
    return torch.tensor(found)


class SmallerCaches:
    """Loss of prediction quality after a prompt, if the prompt's cache is made smaller.

    Parameters
    ----------
    texts : Int[Tensor, "text pos"]
    model : Model, optional
        The shipped model of bytes by default.
    prompt : int
        Tokens whose cache is made smaller; those behind them are predicted.
    """

    def __init__(
        self, texts: Int[Tensor, "text pos"], model: Model | None = None, prompt: int = PROMPT
    ) -> None:
        self.model, self.texts, self.prompt = model or sonde.load("sonde:stdlib"), texts, prompt
        self.name = cache_argument(self.model.module)
        self.whole = self._behind(None)

    def lost(self, form: Any) -> tuple[float, float]:
        """Return the mean divergence in nats, and the bytes of the prompt's cache.

        Parameters
        ----------
        form : CacheRule, CachePacking or callable
        """
        found, size = self._with(form)
        return float((self.whole.exp() * (self.whole - found)).sum(-1).mean()), size

    def dearer(self, form: Any) -> float:
        """Return how much larger the loss of the texts' own tokens is, in nats.

        Parameters
        ----------
        form : CacheRule, CachePacking or callable
        """
        return self.cost(form)[0]

    def cost(self, form: Any) -> tuple[float, float]:
        """Return how much larger the texts' loss is, in nats, and the bytes of the prompt's cache.

        Parameters
        ----------
        form : CacheRule, CachePacking or callable
        """
        found, size = self._with(form)
        own = self.texts[:, self.prompt + 1 :, None]
        return float((self.whole - found)[:, :-1].gather(2, own).mean()), size

    def _with(self, form: Any) -> tuple[Float[Tensor, "..."], float]:
        with sonde.caching(self.model, form) as cache:
            return self._behind(cache, sizes := []), sizes[0]

    @torch.no_grad()
    def _behind(self, cache: Any, sizes: list[float] | None = None) -> Float[Tensor, "..."]:
        run: Callable[..., Any] = self.model.module
        if cache is None:
            return run(self.texts).logits[:, self.prompt :].double().log_softmax(-1)
        run(self.texts[:, : self.prompt], **{self.name: cache})
        if sizes is not None:
            sizes.append(cache.size_bytes)
        out = run(self.texts[:, self.prompt :], **{self.name: cache})
        return out.logits.double().log_softmax(-1)
