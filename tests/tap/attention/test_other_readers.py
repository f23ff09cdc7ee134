"""Gradients inside attentions, and guards of a model that generates."""

from typing import Any

import pytest
import torch

import models
from sonde import Guard
from sonde.core.inputs import Model
from sonde.detect import Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.scoring.score import score
from sonde.tap import live_stream
from tap_inputs import Texts

GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(3, 61, (6,), generator=GENERATOR).tolist() for _ in range(120)]


def qwen2() -> Model:
    return Model(models.qwen2(), task="causal")


@pytest.mark.truth("the chain rule through the output projection")
def test_the_gradient_at_heads_is_that_of_the_output_projected_back():
    model = qwen2()
    sites = ["layers.1:heads", "layers.1.self_attn"]
    stream = live_stream(model, Texts(TEXTS[:4]), sites, "tokens", objective="kl_uniform")
    (batch,) = stream
    heads, output = batch.grad.values()
    layer: Any = model.module
    weight = layer.model.layers[1].self_attn.o_proj.weight.detach()
    torch.testing.assert_close(heads, output @ weight)
    assert float(heads.abs().max()) > 0


@pytest.mark.slow
@pytest.mark.truth("one forward over the whole text")
def test_a_guard_scores_heads_and_keys_of_each_generated_token():
    model, sites = qwen2(), ["layers.1:heads", "layers.1:keys", "layers.0:probs.distance"]
    probe = fit(Mahalanobis(), live_stream(model, Texts(TEXTS), sites, "tokens"), progress=False)
    ids = torch.tensor(TEXTS[:2])
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    live: Any = model.module
    plain = live.generate(ids, attention_mask=torch.ones_like(ids), **how)
    with Guard(model, probe) as guard:
        made = live.generate(ids, attention_mask=torch.ones_like(ids), **how)
    assert torch.equal(made, plain)
    whole = live_stream(model, Texts(plain[:, :-1].tolist(), special=False), sites, "tokens")
    want = {
        (r["site"], r["id"].removeprefix("text"), r["position"]): r["score"]
        for r in score(probe, whole, reduction="rows", progress=False).to_pylist()
    }
    mine = {(r["site"], r["id"], r["position"]): r["score"] for r in guard.table().to_pylist()}
    assert mine == pytest.approx(want, rel=1e-3, abs=1e-4)
    assert len(mine) == 3 * 2 * 9
