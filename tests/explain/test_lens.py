"""Lenses on models whose answer is known: from their last block, or linear above a block."""

import pytest
import torch
from torch import nn

import models
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.explain import AffineLens, LogitLens, TunedLens


@pytest.fixture(scope="module")
def llama():
    return models.llama()


def texts(n: int = 3, length: int = 9):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, models.VOCABULARY, (n, length), generator=generator)


def batches(model, ids):
    rows = [{"input_ids": row} for row in ids]
    inputs = open_inputs(Model(model, task="causal"), rows, batch_size=2)
    return list(inputs.batches(0, len(rows)))


@pytest.mark.truth("the model's own logits, and log-probabilities written out")
def test_the_last_block_answers_as_the_model(llama):
    ids = texts()
    ids[1, 4] = 0  # a token like any other
    found = LogitLens().explain(llama, batches(llama, ids))
    with torch.no_grad():
        out = llama(input_ids=ids, output_hidden_states=True)
        early = llama.lm_head(llama.model.norm(out.hidden_states[1])).double().log_softmax(-1)
    final = out.logits.double().log_softmax(-1)
    kl = (final.exp() * (final - early)).sum(-1).mean()
    assert float(torch.as_tensor(found.value)[0]) == pytest.approx(float(kl), rel=1e-4)
    assert float(torch.as_tensor(found.value)[-1]) == pytest.approx(0.0, abs=1e-9)
    assert float(found.agreement[-1]) == 1.0
    unsure = -(early.exp() * early).sum(-1).mean()
    assert float(found.entropy[0]) == pytest.approx(float(unsure), rel=1e-4)
    following = -early[:, :-1].gather(2, ids[:, 1:, None]).mean()
    assert float(found.cross_entropy[0]) == pytest.approx(float(following), rel=1e-4)
    same = torch.stack(
        [
            llama.lm_head(llama.model.norm(h)).argmax(-1) == final.argmax(-1)
            for h in out.hidden_states[1:-1]
        ]
    )
    always = same.flip(0).cumprod(0).flip(0).bool()
    assert found.depth.tolist() == [
        int(always[0].sum()),
        int((always[1] & ~always[0]).sum()),
        int((~always[1]).sum()),
    ]
    assert found.n == ids.numel()


@pytest.mark.truth("linear blocks have a map without error")
def test_linear_upper_blocks_are_mapped_exactly(llama):
    net = models.llama()

    torch.manual_seed(1)
    with torch.no_grad():
        for block in net.model.layers[1:]:
            block.self_attn.o_proj.weight.zero_()
            block.post_attention_layernorm = nn.Identity()
            block.mlp = nn.Linear(32, 32)
            block.mlp.weight.mul_(3.0)
        net.lm_head.weight.mul_(30.0)
    ids = texts(12, 20)
    plain = LogitLens().explain(net, batches(net, ids))
    with torch.no_grad():
        x = net(input_ids=ids, output_hidden_states=True).hidden_states[1].flatten(0, 1)
        middle = x + net.model.layers[1].mlp(x)
        y = middle + net.model.layers[2].mlp(middle)
    fitted = AffineLens(ridge=1e-9).fit(x, y=y)
    assert fitted.value == pytest.approx(1.0, abs=1e-5)
    mapped = LogitLens({"model.layers.0": fitted.map}).explain(net, batches(net, ids))
    assert float(torch.as_tensor(plain.value)[0]) > 0.1
    assert float(torch.as_tensor(mapped.value)[0]) < 1e-5
    with pytest.raises(InputError, match="expected maps of blocks"):
        LogitLens({"layer 0": fitted.map}).explain(net, batches(net, ids))


def test_training_brings_blocks_closer_to_the_answer():
    net = models.llama()
    with torch.no_grad():
        net.lm_head.weight.mul_(30.0)
    learned, fresh = batches(net, texts(8, 12)), batches(net, texts(4, 12).flip(1))
    before = torch.as_tensor(LogitLens().explain(net, fresh).value)
    after = torch.as_tensor(TunedLens(steps=80).fit(net, learned).explain(net, fresh).value)
    assert bool((after[:-1] < 0.9 * before[:-1]).all())
    assert all(p.grad is None for p in net.parameters())
