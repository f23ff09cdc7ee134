"""Caches that evict, against one whole forward in which each head's evicted keys are masked."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

import models
from attention_models import TEXTS
from cache_name import CACHE
from sonde.core.cache_rule import CacheRule
from sonde.core.errors import InputError, SiteError, StateError
from sonde.tap.cache.evicting import EvictingCache, caching
from sonde.tap.cache.layer import EvictingLayer

REAL = (9, 6, 3)
"""Real tokens of each prompt; the rest is padding."""


@dataclass(frozen=True)
class ByNorm(CacheRule):
    """Keeps keys of small norm: another choice in each head."""

    budget: float | int = 0.5

    def score(self, keys: Tensor, values: Tensor, seen: Any) -> Tensor:
        return -keys.norm(dim=-1)


@dataclass(frozen=True)
class ByAttention(CacheRule):
    """Keeps what the last queries attended to, or all queries."""

    budget: float | int = 0.5
    queries: int | str = "all"

    def reads_attention(self) -> Any:
        return self.queries

    def score(self, keys: Tensor, values: Tensor, seen: Any) -> Tensor:
        return seen.received()


RULES = (ByNorm(4), ByNorm(0.4), ByAttention(5), ByAttention(0.5, 3))


def prompts(side: str = "left") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, models.VOCABULARY, (len(REAL), max(REAL)), generator=generator)
    place = torch.arange(max(REAL))
    n_real = torch.tensor(REAL)[:, None]
    mask = place >= max(REAL) - n_real if side == "left" else place < n_real
    return torch.where(mask, ids, 0), mask.long()


def settings(mask: Tensor, **more: Any) -> dict[str, Any]:
    plain = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return plain | {"attention_mask": mask} | more


def stepped(net: Any, rule: CacheRule, ids: Tensor, mask: Tensor, steps: int = 5) -> Any:
    """Return greedy tokens, all logits of the last column, and which keys each query could use."""
    tokens, logits, uses = ids, [], [[] for _ in range(net.config.num_hidden_layers)]
    with torch.no_grad(), caching(net, rule) as cache:
        for step in range(steps):
            new = tokens if step == 0 else tokens[:, -1:]
            before = [None if x.keys is None else x.kept().clone() for x in cache.evicting]
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
            out = net(new, attention_mask=mask, **{CACHE: cache}, position_ids=position)
            for number, held in enumerate(before):
                uses[number].append((held, tokens.shape[1] - new.shape[1], tokens.shape[1]))
            logits.append(out.logits[:, -1])
            tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return tokens, torch.stack(logits, 1), uses, mask[:, :-1]


def masks(uses: Any, mask: Tensor, n_heads: int) -> list[Tensor]:
    """Return of each layer which key (last axis) each query could use, by brute force."""
    n = mask.shape[1]
    found = []
    for layer in uses:
        seen = torch.zeros(len(mask), n_heads, n, n, dtype=torch.bool)
        for held, first, last in layer:
            for row in range(len(mask)):
                for head in range(n_heads):
                    kept = range(0) if held is None else held[row, head].tolist()
                    for query in range(first, last):
                        at = {k for k in [*kept, *range(first, query + 1)] if k >= 0}
                        seen[row, head, query, [k for k in at if mask[row, k]]] = True
        found.append(seen | ~seen.any(-1, keepdim=True))
    return found


@pytest.mark.truth("one whole forward in which the evicted keys of each head are masked")
@pytest.mark.parametrize(
    ("name", "rule"), [*(("qwen2", rule) for rule in RULES), ("gpt2", RULES[1])], ids=str
)
def test_tokens_are_those_of_a_whole_forward_with_masked_keys(name, rule, monkeypatch):
    net = TEXTS[name]().eval()
    ids, mask = prompts()
    tokens, logits, uses, whole = stepped(net, rule, ids, mask)
    groups = net.config.num_attention_heads // getattr(
        net.config, "num_key_value_heads", net.config.num_attention_heads
    )
    seen = masks(uses, whole, net.config.num_attention_heads // groups)

    def masked(module, query, key, value, attention_mask, scaling=None, **_):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scale
        hidden = ~seen[module.layer_idx].repeat_interleave(groups, 1)
        return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", masked)
    position = (whole.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = net(tokens[:, :-1], attention_mask=whole, position_ids=position).logits
    monkeypatch.undo()

    held = [int((x[-1][0] >= 0).sum(-1).max()) for x in uses]
    assert max(held) < whole.shape[1] - 1, "nothing was evicted"
    torch.testing.assert_close(logits, expected[:, -logits.shape[1] :], rtol=1e-4, atol=1e-5)
    with caching(net, rule) as cache:
        made = net.generate(ids, **{CACHE: cache}, **settings(mask))
    assert torch.equal(made, tokens)


@pytest.mark.parametrize(("name", "rule"), [("qwen2", RULES[1]), ("gemma2", RULES[3])], ids=str)
def test_a_row_gives_in_a_batch_what_it_gives_alone(name, rule):
    net = TEXTS[name]().eval()
    ids, mask = prompts()
    with caching(net, rule) as cache:
        made = net.generate(ids, **{CACHE: cache}, **settings(mask))
    for row, n_real in enumerate(REAL):
        with caching(net, rule) as cache:
            own = ids[row : row + 1, -n_real:]
            alone = net.generate(own, **{CACHE: cache}, **settings(torch.ones_like(own)))
        assert torch.equal(alone[0, n_real:], made[row, max(REAL) :])


def test_padding_on_the_right_keeps_the_same_tokens_as_on_the_left():
    net = TEXTS["qwen2"]().eval()
    kept = []
    for side in ("left", "right"):
        ids, mask = prompts(side)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        if side == "right":
            ids = torch.zeros_like(ids)
            ids[mask.bool()] = prompts()[0][prompts()[1].bool()]
        with torch.no_grad(), caching(net, ByAttention(0.5, 2)) as cache:
            net(ids, attention_mask=mask, **{CACHE: cache}, position_ids=position)
            kept.append(cache.evicting[1].numbers())
    assert torch.equal(kept[0], kept[1])
    assert [int((kept[0][row, 0] >= 0).sum()) for row in range(3)] == [5, 3, 2]


def test_a_budget_that_is_not_reached_changes_no_bit():
    net = TEXTS["qwen2"]().eval()
    ids, mask = prompts()
    way = settings(mask, return_dict_in_generate=True, output_logits=True)
    plain = net.generate(ids, **{CACHE: DynamicCache(config=net.config)}, **way)
    with caching(net, ByAttention(100)) as cache:
        found = net.generate(ids, **{CACHE: cache}, **way)

    assert all(torch.equal(a, b) for a, b in zip(plain.logits, found.logits, strict=True))
    mass = cache.evicting[1].mass  # every real query gives away attention of 1
    assert mass is not None
    expected = torch.tensor(REAL)[:, None].float() + 4
    torch.testing.assert_close(mass.sum(-1), expected.expand(3, 2))


def test_two_caches_that_are_open_at_once_both_evict():
    net = TEXTS["qwen2"]().eval()
    ids = prompts()[0][:1]
    with torch.no_grad(), caching(net, ByNorm(4)) as outer, caching(net, ByNorm(3)) as inner:
        for new in (ids, ids[:, :1]):
            for cache in (outer, inner):
                net(new, **{CACHE: cache})
    kept = [[layer.kept().shape[2] for layer in cache.evicting] for cache in (outer, inner)]
    assert kept == [[4] * len(kept[0]), [3] * len(kept[1])]


def test_beams_and_a_second_turn_go_on_with_what_was_kept():
    net = TEXTS["qwen2"]().eval()
    ids, mask = prompts()
    beams = settings(mask, num_beams=3)
    with caching(net, ByNorm(50)) as cache:
        assert torch.equal(net.generate(ids, **{CACHE: cache}, **beams), net.generate(ids, **beams))
    with caching(net, ByNorm(4)) as cache:
        net.generate(ids, **{CACHE: cache}, **beams)
        assert all(x.kept().shape == (9, 2, 4) for x in cache.evicting)

    rule = ByAttention(5, 2)
    with caching(net, rule) as cache:
        first = net.generate(ids, **{CACHE: cache}, **settings(mask))
        turn = torch.cat([first, ids[:, -2:]], 1)
        longer = torch.cat([mask, torch.ones(3, turn.shape[1] - mask.shape[1]).long()], 1)
        second = net.generate(turn, **{CACHE: cache}, **settings(longer))
        assert cache.get_seq_length() == second.shape[1] - 1
    with caching(net, rule) as cache:  # the same calls by hand
        out = None
        for start, stop in [(0, 9), *((n, n + 1) for n in range(9, 13)), (13, 16)]:
            out = net(turn[:, start:stop], attention_mask=longer[:, :stop], **{CACHE: cache})
    assert out is not None
    assert torch.equal(out.logits[:, -1].argmax(-1), second[:, 16])


def test_layers_with_a_window_stay_and_the_model_is_as_before():
    net = TEXTS["gemma2"]().eval()
    ids, mask = prompts()
    plain = net.generate(ids, **settings(mask))
    hooks = [len(m._forward_pre_hooks) for m in net.modules()]
    with caching(net, ByNorm(3)) as cache:
        kinds = [isinstance(layer, EvictingLayer) for layer in cache.layers]
        assert kinds == [False, True, False]
        assert isinstance(cache.layers[0], DynamicSlidingWindowLayer)
        net.generate(ids, **{CACHE: cache}, **settings(mask))
    assert hooks == [len(m._forward_pre_hooks) for m in net.modules()]
    assert torch.equal(plain, net.generate(ids, **settings(mask)))


def test_what_cannot_evict_says_so():
    net = TEXTS["qwen2"]().eval()
    ids, mask = prompts()
    with caching(net, ByNorm(4)) as cache:
        net.generate(ids, **{CACHE: cache}, **settings(mask))
        with pytest.raises(InputError, match="Assisted decoding needs a plain cache"):
            cache.crop(-1)
        with pytest.raises(InputError, match=r"expected calls that use the cache"):
            net.generate(ids, use_cache=False, max_new_tokens=2, **{CACHE: cache})
        with pytest.raises(InputError, match=r"expected attention_mask of shape \(3, 14\)"):
            net(ids[:, :1], attention_mask=mask, **{CACHE: cache})
    assert isinstance(cache, EvictingCache)
    with pytest.raises(StateError, match="inside its with block"):
        net(ids[:, :1], **{CACHE: cache})
    with (
        pytest.raises(SiteError, match="only decoder-only models"),
        caching(TEXTS["t5"](), ByNorm()),
    ):
        pass
    with (
        pytest.raises(SiteError, match="has a sliding window"),
        caching(TEXTS["mistral"](), ByNorm()),
    ):
        pass
    with pytest.raises(InputError, match=r"ByNorm: expected budget .* got 1.5"):
        ByNorm(1.5)
