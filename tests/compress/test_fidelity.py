"""How far two models' answers are apart."""

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from sonde import Model
from sonde.compress import fidelity
from sonde.core.errors import InputError
from sonde.data import open_inputs


@pytest.mark.truth("torch.distributions, row by row")
def test_divergence_quantile_and_flips():
    torch.manual_seed(0)
    one, two = (nn.Sequential(nn.Linear(5, 3)).eval() for _ in range(2))
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    label = torch.arange(200) % 3
    found = fidelity(one, two, open_inputs(Model(one), (x, label)))
    with torch.no_grad():
        p, q = (torch.distributions.Categorical(logits=net(x).double()) for net in (one, two))
        kl = torch.distributions.kl_divergence(p, q)
        tops = [d.probs.argmax(1) for d in (p, q)]
    right = [top == label for top in tops]
    assert found.n == 200
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-5)
    se = float(kl.std(correction=0)) / 200**0.5
    assert found.kl_high - found.kl_low == pytest.approx(2 * 1.96 * se, rel=0.15)
    assert found.kl_low < found.kl < found.kl_high
    assert found.kl_99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-5)
    assert found.changed == pytest.approx(float((tops[0] != tops[1]).double().mean()))
    assert found.right_to_wrong == pytest.approx(float((right[0] & ~right[1]).double().mean()))
    assert found.wrong_to_right == pytest.approx(float((right[1] & ~right[0]).double().mean()))
    same = fidelity(one, one, open_inputs(Model(one), (x, label)))
    assert (same.kl, same.changed, same.kl_99) == (0.0, 0.0, 0.0)


def test_without_labels_it_is_unknown_which_answers_were_lost():
    one, two = (nn.Sequential(nn.Linear(5, 3)).eval() for _ in range(2))
    found = fidelity(one, two, open_inputs(Model(one), torch.randn(20, 5)))
    assert found.changed >= 0
    assert math.isnan(found.right_to_wrong)
    assert math.isnan(found.wrong_to_right)


def test_no_examples_are_refused():
    net = nn.Sequential(nn.Linear(5, 3)).eval()
    data = open_inputs(Model(net), (torch.randn(4, 5), torch.arange(4) % 3))
    with pytest.raises(InputError, match="expected examples with answers, got none"):
        fidelity(net, net, data, start=4)


class MaskedLogits(nn.Linear):
    def forward(self, x):
        return super().forward(x).masked_fill(torch.arange(5) == 3, -torch.inf)


def test_a_class_that_both_models_rule_out_counts_nothing():
    torch.manual_seed(0)
    one, other, x = MaskedLogits(3, 5), MaskedLogits(3, 5), torch.randn(20, 3)
    inputs = open_inputs(Model(one), x)
    assert fidelity(one, one, inputs).kl == 0.0
    some = [0, 1, 2, 4]
    p, q = (net(x)[:, some].double().log_softmax(1) for net in (one, other))
    wanted = float((p.exp() * (p - q)).sum(1).mean().detach())
    assert fidelity(one, other, inputs).kl == pytest.approx(wanted, rel=1e-6)


@pytest.mark.truth("torch's cosine over means that are taken example by example")
def test_models_that_answer_with_vectors_are_compared_by_the_cosine():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    nets = [
        BertModel(BertConfig(vocab_size=60, intermediate_size=24, **small)).eval() for _ in "ab"
    ]
    rows = [torch.randint(5, 60, (n,)) for n in (4, 7, 3, 6, 5)]
    live = Model(nets[0], config=nets[0].config, task="encoder")
    found = fidelity(live, nets[1], open_inputs(live, [{"input_ids": ids} for ids in rows]))
    with torch.no_grad():
        means = [[net(ids[None]).last_hidden_state[0].mean(0) for ids in rows] for net in nets]
    cosines = torch.stack(
        [nn.functional.cosine_similarity(*pair, dim=0) for pair in zip(*means, strict=True)]
    )
    assert found.n == 5
    assert found.cosine == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert found.cosine_5 == pytest.approx(float(cosines.quantile(0.05)), abs=1e-5)
    assert found.cosine_low < found.cosine < found.cosine_high
    assert math.isnan(found.kl)
    assert found.loss == 1 - found.cosine
    nearest = []
    for each in means:
        like = [[float(nn.functional.cosine_similarity(a, b, dim=0)) if a is not b else -2.0
                 for b in each] for a in each]  # fmt: skip
        nearest.append([row.index(max(row)) for row in like])
    assert found.changed == sum(a != b for a, b in zip(*nearest, strict=True)) / 5
    same = fidelity(live, nets[0], open_inputs(live, [{"input_ids": ids} for ids in rows]))
    assert same.cosine == pytest.approx(1.0)
    assert same.changed == 0.0


@pytest.mark.truth("torch.distributions at each token of the decoder")
def test_decoders_are_compared_at_each_of_their_tokens():
    torch.manual_seed(0)
    small = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=60, decoder_start_token_id=0, **small)
    nets = [T5ForConditionalGeneration(config).eval() for _ in "ab"]
    live = Model(nets[0], config=config, task="seq2seq")
    ids = torch.randint(5, 60, (4, 6))
    found = fidelity(live, nets[1], open_inputs(live, ids))
    start = torch.zeros(4, 1, dtype=torch.long)
    with torch.no_grad():
        p, q = (torch.distributions.Categorical(
            logits=net(input_ids=ids, decoder_input_ids=start).logits[:, 0].double()
        ) for net in nets)  # fmt: skip
    assert found.n == 4
    assert found.kl == pytest.approx(
        float(torch.distributions.kl_divergence(p, q).mean()), rel=1e-5
    )
