"""Tokens of units against dense products and clamped forwards."""

import pytest
import torch

import models
from lm_twin_case import twin
from sonde.core import InputError, ShapeError
from sonde.explain import NeuronLens


@pytest.fixture(scope="module")
def gpt2():
    net = models.gpt2()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.transformer.ln_f.weight.copy_(torch.rand(32, generator=generator) + 0.5)
        net.transformer.ln_f.bias.copy_(torch.randn(32, generator=generator))
    return net


@pytest.mark.truth("dense product, with the layer norm written out")
@pytest.mark.parametrize("gain", [True, False])
def test_tokens_of_the_down_projection(gpt2, gain):
    head, norm = gpt2.lm_head.weight.detach(), gpt2.transformer.ln_f.weight.detach()
    written = gpt2.transformer.h[1].mlp.c_proj.weight.detach()  # of this class (in, out)
    if gain:
        written = (written - written.mean(1, keepdim=True)) * norm
    score = written @ head.T
    found = NeuronLens(n=4, gain=gain).explain(gpt2, site="transformer.h.1.mlp.c_proj")
    torch.testing.assert_close(found.top_score, score.topk(4, dim=1).values, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.top[:, 0], score.argmax(1))
    assert torch.equal(found.bottom[:, 0], score.argmin(1))
    z = (score.amax(1) - score.mean(1)) / score.std(1, correction=0)
    torch.testing.assert_close(torch.as_tensor(found.value).float(), z, rtol=1e-4, atol=1e-4)


def test_units_follow_their_permutation_and_two_models_compare(gpt2):
    found = NeuronLens(n=5).explain(gpt2, site="transformer.h.0.mlp.c_fc")
    assert len(found.top) == 128
    assert found.agreement(found) == 1.0
    torch.testing.assert_close(found.overlap(found), torch.ones(128).double())
    weight = gpt2.transformer.h[0].mlp.c_fc.weight.detach().T
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    mixed = NeuronLens(n=5).of(gpt2, weight[order])
    assert torch.equal(mixed.top, found.top[order])
    assert found.agreement(mixed) < 0.2
    assert float(found.overlap(mixed).mean()) < 0.2


def test_tokens_have_texts_if_the_model_has_a_tokenizer():
    model = twin()
    found = NeuronLens(n=3).explain(model, site="model.layers.1.mlp.down_proj")
    top, bottom = (found.table()[side].to_pylist() for side in ("top", "bottom"))
    assert top[5][0] == model.processor.decode([int(found.top[5, 0])])
    assert bottom[-1][2] == model.processor.decode([int(found.bottom[-1, 2])])
    bare = NeuronLens(n=3).explain(model.module, site="model.layers.1.mlp.down_proj")
    assert bare.table()["top"].to_pylist() == found.top.tolist()


@pytest.mark.truth("logits of a clamped forward without a final norm")
def test_a_clamped_unit_shifts_logits_by_its_scores():
    net = models.gpt2()
    net.transformer.ln_f = torch.nn.Identity()
    unit, level, seen = 4, 7.0, []
    ids = torch.randint(3, models.VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(0))

    def clamp(module, args):
        seen.append(args[0][..., unit].clone())
        args[0][..., unit] = level

    with torch.no_grad():
        plain = net(ids).logits
        net.transformer.h[2].mlp.c_proj.register_forward_pre_hook(clamp)
        changed = net(ids).logits
    found = NeuronLens(n=models.VOCABULARY).explain(net, site="transformer.h.2.mlp.c_proj")
    scores = torch.zeros(models.VOCABULARY).scatter(0, found.top[unit], found.top_score[unit])
    torch.testing.assert_close(
        changed - plain, (level - seen[0])[..., None] * scores, rtol=1e-4, atol=1e-5
    )


def test_layers_of_other_widths_are_refused(gpt2):
    with pytest.raises(ShapeError, match="the width 32 of the residual stream, got"):
        NeuronLens(side="writes").explain(gpt2, site="transformer.h.0.mlp.c_fc")
    with pytest.raises(InputError, match="is square"):
        NeuronLens().explain(gpt2, site="transformer.h.0.attn.c_proj")
