"""Maps of attentions against the probabilities of transformers, and a net written out by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import sonde
from models import gpt2, mlp, t5
from sonde import editing
from sonde.core import InputError, SiteError
from sonde.core.edit import Edit
from sonde.data import open_inputs
from sonde.explain import (
    AttentionRelevance,
    AttentionRollout,
    AttentionTimesGradient,
    Objective,
    RawAttention,
)

IDS = torch.tensor([[5, 9, 3, 7, 11], [4, 8, 2, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LAST = [4, 2]
INPUTS = {"input_ids": IDS, "attention_mask": MASK}


@pytest.fixture(scope="module")
def model():
    return gpt2()


@pytest.fixture(scope="module")
def probs(model):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**INPUTS, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return [x.double() for x in found]


@pytest.mark.truth("the attentions that transformers returns, multiplied layer by layer")
def test_rollout_is_the_product_of_mixed_layers(model, probs):
    found = AttentionRollout().explain(model, INPUTS)
    raw = RawAttention(layer=0).explain(model, INPUTS)
    for i, last in enumerate(LAST):
        n = last + 1
        product = torch.eye(n, dtype=torch.float64)
        for layer in probs:
            product = (0.5 * layer[i].mean(0)[:n, :n] + 0.5 * torch.eye(n)) @ product
        values = torch.as_tensor(found.value)[i].double()
        torch.testing.assert_close(values[:n], product[last], atol=1e-6, rtol=0)
        assert values[n:].eq(0).all()
        looks = torch.as_tensor(raw.value)[i].double()
        torch.testing.assert_close(looks, probs[0][i].mean(0)[last], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.by_place.sum(1), torch.ones(2))
    assert not found.signed


@pytest.mark.truth("the attentions that transformers returns, smallest entries sorted out by hand")
def test_heads_become_one_and_small_looks_go(model, probs):
    rollout = AttentionRollout(residual=0.0, heads="max", discard=0.5)
    found = torch.as_tensor(rollout.explain(model, INPUTS).value)[0].double()
    product = torch.eye(5, dtype=torch.float64)
    for layer in probs:
        looks = layer[0].amax(0)
        bar = looks.flatten().sort().values[12]
        looks = torch.where(looks >= bar, looks, 0.0)
        product = (looks / looks.sum(1, keepdim=True)) @ product
    torch.testing.assert_close(found, product[4], atol=1e-6, rtol=0)


@pytest.mark.truth("the same text alone, without padding")
@pytest.mark.parametrize(
    "method",
    [AttentionRollout(heads="max", discard=0.7), AttentionRelevance(), AttentionTimesGradient()],
    ids=repr,
)
def test_padding_changes_no_map(model, method):
    found = torch.as_tensor(method.explain(model, INPUTS).value)[1]
    alone = {name: x[1:, : LAST[1] + 1] for name, x in INPUTS.items()}
    want = torch.as_tensor(method.explain(model, alone).value)[0]
    torch.testing.assert_close(found[: LAST[1] + 1], want, atol=1e-6, rtol=0)
    assert not found[LAST[1] + 1 :].any()


@dataclass(frozen=True)
class Key(Edit):
    """Scales what every query gives one key."""

    key: int
    factor: float

    def apply(self, x, site, context):
        each = x.unflatten(-1, (4, -1)).clone()
        each[..., self.key] *= self.factor
        return each.flatten(-2)


@pytest.mark.truth("central differences: what all queries give a key, scaled up and down")
def test_times_gradient_is_the_slope_of_scaling_a_key():
    model, step = gpt2().double(), 1e-5
    objective = Objective("margin", target=3, other=5)
    fixed = objective.fixed(model(**INPUTS).logits, IDS, MASK)
    found = AttentionTimesGradient(layer=1).explain(model, INPUTS, objective=objective)
    for key in range(3):
        sides = []
        for factor in (1 + step, 1 - step):
            with torch.no_grad(), editing(model, Key(key, factor), "transformer.h.1.attn:probs"):
                sides.append(fixed.of(model(**INPUTS).logits))
        slope = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(torch.as_tensor(found.value)[:, key], slope, atol=1e-7, rtol=0)
    assert found.signed
    assert torch.as_tensor(found.value).min() < 0


class Two(nn.Module):
    """Two attentions of one head with a residual stream, read at the mean of all positions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (nn.MultiheadAttention(4, 1, batch_first=True) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = x + self.one(x, x, x, need_weights=False)[0]
        x = x + self.two(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


@pytest.mark.truth("the net written out, its gradients by autograd, the update by hand")
def test_relevance_of_a_net_written_out():
    model, kept = Two(), []
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))

    def attended(layer, x):
        q, k, v = (x @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, -1)
        kept.append((q @ k.transpose(1, 2) / 2).softmax(-1))
        return x + layer.out_proj(kept[-1] @ v)

    logits = model.head(attended(model.two, attended(model.one, x)).mean(1))
    torch.testing.assert_close(logits, model(x))
    slopes = torch.autograd.grad(logits[0, 1], kept)
    r = torch.eye(3)
    for a, slope in zip(kept, slopes, strict=True):
        r = r + (a * slope).relu()[0].detach() @ r
    found = AttentionRelevance().explain(model, x, objective=Objective(target=1))
    torch.testing.assert_close(torch.as_tensor(found.value)[0], r.mean(0))


def test_a_picture_gets_a_map_of_its_size():
    model = sonde.load("sonde:digits")
    batch = next(iter(open_inputs(model, "sonde:digits/test", limit=3).batches(0, 3)))
    found = AttentionRollout().explain(model, batch)
    assert found.by_place.shape == (3, 8, 8)
    embedded = AttentionRollout().explain(model, batch, site="vit.embeddings")
    assert embedded.by_place.shape == (3, 17)


def test_what_has_no_attention_over_its_own_tokens_is_refused(model):
    with pytest.raises(SiteError, match="contains no attention layer"):
        AttentionRollout().explain(mlp(), torch.ones(2, 8))
    two = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    with pytest.raises(SiteError, match="self-attention maps of one sequence"):
        AttentionRollout().explain(t5(), two, site="encoder.block.0:out")
    with pytest.raises(InputError, match=r"a layer in 0\.\.2"):
        RawAttention(layer=7).explain(model, INPUTS)
    with pytest.raises(InputError, match="residual in"):
        AttentionRollout(residual=2.0)
