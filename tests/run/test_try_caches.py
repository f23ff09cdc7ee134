"""Cache rules tried on texts: the divergence by hand, the bytes, and what is recommended."""

import json
import math
from itertools import pairwise

import pytest
import torch
from tests.student import student

from attention_models import TEXTS
from cache_name import CACHE
from models import VOCABULARY
from sonde.cli import main
from sonde.compress import CrossLayerCache, KeyNorm, RecentCache
from sonde.core import InputError, Model
from sonde.data.opening import open_inputs
from sonde.run.compressing.caches import CacheTrial, smallest, suited, try_caches
from sonde.tap.cache.evicting import caching

LENGTHS = (20, 13, 16)


def texts(model: Model):
    generator = torch.Generator().manual_seed(2)
    items = [
        {"input_ids": torch.randint(5, VOCABULARY, (n,), generator=generator)} for n in LENGTHS
    ]
    return items, open_inputs(model, items, batch_size=2)


@pytest.mark.truth("each text alone, read in parts by hand, with torch's own divergence")
def test_divergence_is_that_of_texts_read_in_parts():
    net = TEXTS["qwen2"]().eval()
    model = Model(net, config=net.config, task="causal")
    items, inputs = texts(model)
    rule = KeyNorm(4)

    (trial,) = try_caches(model, inputs, [rule], step=3, progress=False)

    found = []
    for batch in inputs.batches(0, 3):  # a batch reads its parts at the same columns
        half = -(-batch.kwargs["input_ids"].shape[1] // 2)
        for order in batch.order.tolist():
            ids = items[order]["input_ids"][None]
            edges = [0, *range(half, ids.shape[1], 3), ids.shape[1]]
            with torch.no_grad(), caching(net, rule) as cache:
                parts = [net(ids[:, a:b], **{CACHE: cache}).logits for a, b in pairwise(edges)]
                plain = net(ids).logits[:, half:].log_softmax(-1)
            own = torch.cat(parts[1:], 1).log_softmax(-1)
            apart = torch.nn.functional.kl_div(own, plain, log_target=True, reduction="none")
            found.append(apart.sum(-1).mean())
    assert trial.divergence_nats == pytest.approx(float(torch.stack(found).mean()), rel=1e-3)
    error = student(3) * float(torch.stack(found).std() / 3**0.5)
    assert trial.se == pytest.approx(error, rel=1e-3)
    assert 0.1 < trial.memory < 0.6


def test_chunks_fill_in_the_texts_that_a_packing_is_tried_on():
    assert suited(CrossLayerCache(), 256) == CrossLayerCache(chunk=96)
    assert suited(CrossLayerCache(), 2048) == CrossLayerCache()
    assert suited(CrossLayerCache(), 60) == CrossLayerCache()  # all of it is recent
    assert suited(KeyNorm(4), 256) == KeyNorm(4)


def test_the_smallest_cache_is_surely_below_the_limit():
    fine, unsure, large = (
        CacheTrial(RecentCache(share), 0.03, se, 0.1, 0.9, share, 1.0)
        for share, se in ((0.5, 0.005), (0.25, 0.02), (0.75, 0.001))
    )

    assert smallest([large, unsure, fine], 0.05) is fine
    assert smallest([unsure], 0.05) is None


def test_an_error_that_is_not_known_is_none_in_the_document():
    trial = CacheTrial(RecentCache(0.5), 0.03, math.inf, 0.1, 0.9, 0.5, 1.0)

    assert json.loads(json.dumps(trial.json(), allow_nan=False))["se"] is None


def test_texts_of_one_token_are_refused():
    net = TEXTS["qwen2"]().eval()
    model = Model(net, config=net.config, task="causal")
    inputs = open_inputs(model, [{"input_ids": torch.tensor([7])}])

    with pytest.raises(InputError, match="expected texts of two tokens or more, got none"):
        try_caches(model, inputs, [RecentCache(1)], progress=False)


@pytest.mark.slow
def test_the_command_recommends_and_shows_the_code(capsys):
    words = [
        "cache",
        "sonde:stdlib",
        "sonde:stdlib/test",
        "--rules",
        "recent_cache",
    ]
    assert main([*words, "--limit", "3", "--budgets", "0.5"]) == 0
    assert "belong to a single group" in " ".join(capsys.readouterr().out.split())
    words = [*words, "--limit", "6"]
    assert main([*words, "--budgets", "1.0", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "with sonde.caching(model, RecentCache(budget=" in said

    assert main([*words, "--budgets", "1.0", "--json"]) == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    assert trial["divergence_nats"] == pytest.approx(0, abs=1e-6)
    assert trial["same_answer"] == 1.0

    assert main(["cache", "sonde:stdlib", "sonde:stdlib/test", "--rules", "recent"]) == 2
    assert "no cache is called 'recent'" in capsys.readouterr().err
