"""Runs in the environment of kvpress: a share of a prompt's keys kept, by its rules and ours."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.environments import peer_version
from sonde import load
from sonde.compress import TOVA, ExpectedAttention, KeyDiff, KeyNorm, SnapKV, StreamingCache
from sonde.core import CacheRule
from sonde.data.opening import open_inputs
from sonde.tap.cache.evicting import caching

PROMPT, KEPT, NEW, WINDOW = 160, 40, 32, 16


def divergences(n_texts: int) -> dict[str, Any]:
    """Return the mean divergence of predictions behind a prompt, for each rule: ours and theirs.

    kvpress reads the cache under the name that transformers gave it before 5.24; its hook is called
    with that name. It takes one text at a time.
    """
    presses: Any = import_module("kvpress")
    share = 1 - KEPT / PROMPT
    rules: dict[str, tuple[CacheRule, Any]] = {
        "key norm": (KeyNorm(KEPT), presses.KnormPress(share)),
        "KeyDiff": (KeyDiff(KEPT), presses.KeyDiffPress(share)),
        "SnapKV": (
            SnapKV(KEPT, window=WINDOW, kernel=5),
            presses.SnapKVPress(share, window_size=WINDOW, kernel_size=5),
        ),
        "TOVA": (TOVA(KEPT), presses.TOVAPress(share)),
        "StreamingLLM": (StreamingCache(KEPT), presses.StreamingLLMPress(share, n_sink=4)),
        "expected attention": (
            ExpectedAttention(KEPT),
            presses.ExpectedAttentionPress(share, use_covariance=True),
        ),
    }
    model = load("sonde:stdlib")
    inputs = open_inputs(model, "sonde:stdlib/test").first(4 * n_texts)
    batch = next(iter(inputs.batches(0, len(inputs))))
    ids, mask = batch.kwargs["input_ids"], batch.mask
    if ids.shape[1] < PROMPT + NEW:
        raise RuntimeError(f"texts of {PROMPT + NEW} tokens, got {ids.shape[1]}")
    rows = [r for r in range(len(ids)) if mask is None or int(mask[r].sum()) >= PROMPT + NEW]
    texts = ids[rows[:n_texts], : PROMPT + NEW]
    net: Any = model.module
    found: dict[str, Any] = {"peer": peer_version("kvpress"), "n": len(texts), "rules": {}}
    with torch.no_grad():
        whole = net(texts).logits[:, PROMPT:].log_softmax(-1)
        for name, (rule, press) in rules.items():
            both = [torch.cat([run(net, x[None]) for x in texts])
                    for run in (_ours(rule), _theirs(press))]  # fmt: skip
            with caching(net, rule) as cache:
                net(texts[:, :PROMPT], cache=cache)
                batched = net(texts[:, PROMPT:], cache=cache).logits.log_softmax(-1)
            ours, theirs, together = (_apart(whole, x) for x in (*both, batched))
            found["rules"][name] = {"ours": ours, "theirs": theirs, "batched": together}
        found["padded"] = _padded(net, rules["SnapKV"][0], texts)
    return found


def _padded(net: Any, rule: CacheRule, texts: Tensor) -> float:
    """Return how far logits of texts of unlike lengths in one padded batch are from each alone."""
    lengths = [PROMPT - 5 * i for i in range(len(texts))]
    ids, mask = torch.zeros_like(texts), torch.zeros_like(texts)
    for row, n in enumerate(lengths):
        ids[row, PROMPT - n :], mask[row, PROMPT - n :] = texts[row, PROMPT - n :], 1
    place, largest = (mask.cumsum(1) - 1).clamp(min=0), 0.0
    with caching(net, rule) as cache:
        given = {"attention_mask": mask[:, :PROMPT], "position_ids": place[:, :PROMPT]}
        net(ids[:, :PROMPT], cache=cache, **given)
        given = {"attention_mask": mask, "position_ids": place[:, PROMPT:]}
        together = net(ids[:, PROMPT:], cache=cache, **given).logits
    for row, n in enumerate(lengths):
        with caching(net, rule) as cache:
            net(texts[row : row + 1, PROMPT - n : PROMPT], cache=cache)
            alone = net(texts[row : row + 1, PROMPT:], cache=cache).logits
        largest = max(largest, float((alone[0] - together[row]).abs().max()))
    return largest


def _apart(whole: Tensor, found: Tensor) -> float:
    return float((whole.exp() * (whole - found)).sum(-1).mean())


def _ours(rule: CacheRule) -> Callable[[Any, Tensor], Tensor]:
    def run(net: Any, text: Tensor) -> Tensor:
        with caching(net, rule) as cache:
            net(text[:, :PROMPT], cache=cache)
            return net(text[:, PROMPT:], cache=cache).logits.log_softmax(-1)

    return run


def _theirs(press: Any) -> Callable[[Any, Tensor], Tensor]:
    def run(net: Any, text: Tensor) -> Tensor:
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=net.config)

        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            older = {"past_key_values": cache, "cache_position": torch.arange(PROMPT)}
            return press.forward_hook(module, args, kwargs | older, output)

        parts = [layer.self_attn for layer in net.model.layers]
        for part in parts:
            part.rotary_emb = net.model.rotary_emb
        handles = [p.register_forward_hook(hook, with_kwargs=True) for p in parts]
        press.post_init_from_model(net)
        net(text[:, :PROMPT], cache=cache)
        for handle in handles:
            handle.remove()
        kept = {layer.keys.shape[2] for layer in cache.layers}
        if kept != {KEPT}:
            raise RuntimeError(f"{type(press).__name__} kept {kept}, not {KEPT}")
        place = torch.arange(PROMPT, PROMPT + NEW)[None]
        return net(text[:, PROMPT:], cache=cache, position_ids=place).logits.log_softmax(-1)

    return run
