"""Laws of rules that select the tokens of a key-value cache."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from sonde.core.cache_rule import CachedTokens, CacheRule
from sonde.core.query_moments import QueryMoments
from sonde.core.state import map_tensors
from sonde.tap.hooks.cache import cache_argument
from sonde.testing.edit_laws import language_model, prompts

N_ROWS, N_HEADS, N_SLOTS, WIDTH = 2, 3, 7, 4
EMPTY = 3
"""Slots of the second row that are empty."""


def held(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, CachedTokens]:
    """Return keys, values and tokens of two texts; the second text holds fewer tokens."""
    generator = torch.Generator().manual_seed(5)
    keys, values = torch.randn(2, N_ROWS, N_HEADS, N_SLOTS, WIDTH, generator=generator).to(dtype)
    index = torch.arange(N_SLOTS).expand(N_ROWS, N_HEADS, -1).clone()
    index[1] = index[1] - EMPTY
    index[1, :, :EMPTY] = -1
    attention = torch.rand(N_ROWS, N_HEADS, N_SLOTS, generator=generator)
    attention = torch.where(index < 0, 0.0, attention)
    total = torch.tensor([N_SLOTS, N_SLOTS - EMPTY])
    queries = torch.randn(N_ROWS, 2 * N_HEADS, N_SLOTS, WIDTH, generator=generator)
    moments = QueryMoments.of(queries, index[:, 0] >= 0)
    return keys, values, CachedTokens(index, total, torch.tensor([3, 2]), attention, moments)


def law_score(rule: CacheRule) -> None:
    """Every token has a finite score, in float32 and in half types; inputs are not changed."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        keys, values, seen = held(dtype)
        before = keys.clone(), values.clone(), seen.index.clone()
        scores = rule.score(keys, values, seen)
        assert scores.shape == seen.index.shape, f"scores of shape {tuple(scores.shape)}"
        assert not scores[seen.index >= 0].isnan().any(), f"a token of {dtype} scores NaN"
        after = keys, values, seen.index
        same = (torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(same), "the rule changed what it was shown"


def law_empty(rule: CacheRule) -> None:
    """The content of empty slots does not change the score of a token."""
    keys, values, seen = held()
    empty = (seen.index < 0)[..., None]
    other = torch.where(empty, 1e3, keys), torch.where(empty, -1e3, values)
    kept = (seen.index >= 0).nonzero(as_tuple=True)
    gap = rule.score(keys, values, seen)[kept] - rule.score(*other, seen)[kept]
    moved = float(gap.nan_to_num().abs().max())
    assert moved < 1e-6, f"scores moved by {moved:.3g} with what lies in empty slots"


def law_alone(rule: CacheRule) -> None:
    """A text's tokens score the same alone as in a batch with a longer text."""
    keys, values, seen = held()
    assert seen.attention is not None
    assert seen.queries is not None
    own = slice(1, 2), slice(None), slice(EMPTY, None)
    moments = map_tensors(seen.queries, lambda x: x[1:])
    one = CachedTokens(seen.index[own], seen.total[1:], seen.keep[1:], seen.attention[own], moments)
    gap = rule.score(keys, values, seen)[own] - rule.score(keys[own], values[own], one)
    moved = float(gap.nan_to_num().abs().max())
    assert moved < 1e-6, f"scores moved by {moved:.3g} with the other texts of the batch"


def law_budget(rule: CacheRule) -> None:
    """After every call, each text holds as many tokens as its budget, and no padding."""
    from sonde.tap.cache.evicting import caching

    net, (ids, mask) = language_model(), prompts()
    more = torch.ones(len(ids), 1, dtype=torch.bool)
    with torch.no_grad(), caching(net, rule) as cache:
        for step in range(4):
            new = ids if step == 0 else ids[:, -1:]
            net(new, attention_mask=mask.long(), **{cache_argument(net): cache})
            total = mask.sum(1)
            expected = torch.minimum(rule.kept(total), total)
            for layer in cache.evicting:
                held, wanted = (layer.numbers() >= 0).sum(-1), expected[:, None]
                if rule.by_head:  # heads share the budget out
                    held, wanted = held.sum(-1), expected * held.shape[-1]
                assert bool((held == wanted).all()), (
                    f"{held.tolist()} tokens are held after call {step}, {wanted.tolist()} by "
                    "the budget"
                )
            mask = torch.cat([mask, more], 1)


def law_whole(rule: CacheRule) -> None:
    """With a budget of the whole text, the logits equal those of a plain cache, bit for bit."""
    from transformers import DynamicCache

    from sonde.tap.cache.evicting import caching

    net, (ids, mask) = language_model(), prompts()
    longer = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    with torch.no_grad(), caching(net, replace(cast(Any, rule), budget=1.0)) as cache:
        for held in (cache, plain := DynamicCache(config=net.config)):
            net(ids, attention_mask=mask.long(), **{cache_argument(net): held})
        given = {"attention_mask": longer.long()}
        logits = net(ids[:, -1:], **{cache_argument(net): cache}, **given).logits
        expected = net(ids[:, -1:], **{cache_argument(net): plain}, **given).logits
    assert torch.equal(logits, expected), "logits differ although nothing was evicted"
