"""A small model, a prompt, and its keys and attentions, for tests of cache rules."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import models
from attention_models import TEXTS
from cache_name import CACHE
from sonde.core import CacheRule
from sonde.tap.cache.evicting import caching

N_TOKENS = 17
LAYER = 1
SHARP = 8.0


@cache
def net() -> Any:
    """Return a model with four query heads on two key heads, whose queries look sharply.

    As it is drawn its attentions are nearly even, so that the oldest tokens receive the most.
    """
    model = TEXTS["qwen2"]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".q_proj." in name or ".k_proj." in name:
                weight *= SHARP
    return model


def prompt() -> Tensor:
    """Return one prompt of 17 tokens."""
    generator = torch.Generator().manual_seed(11)
    return torch.randint(5, models.VOCABULARY, (1, N_TOKENS), generator=generator)


def keys() -> Tensor:
    """Return the keys of one layer, (head, token, width), from a plain cache."""
    plain: Any = DynamicCache(config=net().config)
    with torch.no_grad():
        net()(prompt(), **{CACHE: plain})
    return plain.layers[LAYER].keys[0].double()


def attentions() -> Tensor:
    """Return the attention of one layer, (key head, query, token), averaged over query heads."""
    kept = net().config._attn_implementation
    net().set_attn_implementation("eager")
    with torch.no_grad():
        found = net()(prompt(), output_attentions=True).attentions[LAYER][0].double()
    net().set_attn_implementation(kept)
    return found.unflatten(0, (2, -1)).mean(1)


def kept(rule: CacheRule) -> list[list[int]]:
    """Return the tokens that each head of the layer keeps after the prompt."""
    with torch.no_grad(), caching(net(), rule) as cache:
        net()(prompt(), **{CACHE: cache})
        return cache.evicting[LAYER].kept()[0].tolist()


def best(scores: Tensor, count: int, always: set[int] = frozenset()) -> list[list[int]]:  # pyright: ignore[reportArgumentType]
    """Return the tokens of largest score in each head, in order, those of ``always`` first."""
    found = []
    for head in scores.tolist():
        order = sorted(range(len(head)), key=lambda i: (i not in always, -head[i], i))
        found.append(sorted(order[:count]))
    return found
