"""Corrected biases: means of outputs kept, errors of covariances, new biases on disk, refusals."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import sonde
from sonde import Model
from sonde.compress import AWQ, RTN, PruneWeights, correct_biases, fidelity, layer_grams
from sonde.core.errors import InputError, SondeWarning
from sonde.data import open_inputs
from sonde.weights import RewritePlan


def net_and_rows() -> tuple[Any, torch.Tensor]:
    """Return a grouped convolution with a linear layer without bias, and pictures of mean 1."""
    draw = torch.Generator().manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5, False)
    )
    net = net.double().eval().requires_grad_(False)
    for x in net.parameters():
        x.copy_(torch.randn(x.shape, generator=draw, dtype=torch.float64))
    return net, 1 + torch.randn(40, 4, 4, 4, generator=draw, dtype=torch.float64)


@pytest.mark.truth("means of the layers' own outputs, run by torch on the same inputs")
@pytest.mark.parametrize(
    "rule", [PruneWeights(remove=0.6, layers=("*",)), RTN(bits=2, group=4, layers=("*",))]
)
def test_each_layer_keeps_the_mean_of_its_outputs_and_errs_less(rule):
    net, x = net_and_rows()
    inputs = open_inputs(Model(net), x)
    plain = rule.plan(net, {"calibration": inputs} if rule.reads() else None)
    new = correct_biases(plain, net, inputs).fold(net)
    old = plain.fold(net)
    for place, rows in ((0, x), (3, net[:3](x))):
        wanted, without, got = (one[place](rows).detach() for one in (net, old, new))
        axes = tuple(i for i in range(wanted.ndim) if i != 1)
        assert (without - wanted).mean(axes).abs().max() > 0.1
        torch.testing.assert_close(got.mean(axes), wanted.mean(axes), rtol=1e-6, atol=1e-6)
        assert (got - wanted).square().sum() < 0.9 * (without - wanted).square().sum()
    assert new[3].bias is not None
    assert net[3].bias is None


def test_answers_of_a_net_whose_states_have_a_mean_change_less():
    draw = torch.Generator().manual_seed(1)
    net: Any = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                             nn.Linear(64, 6)).eval().requires_grad_(False)  # fmt: skip
    for x in net.parameters():
        x.copy_(0.3 * torch.randn(x.shape, generator=draw))
    inputs = open_inputs(Model(net), torch.randn(300, 24, generator=draw))
    held = open_inputs(Model(net), torch.randn(300, 24, generator=draw))
    plain = RTN(bits=2, group=32).plan(net)
    plan = correct_biases(plain, net, layer_grams(net, inputs, progress=False))
    assert plan.figures["biases"] == len(plain.changes) == 3
    assert plan.method == f"{plain.method}, biases corrected"
    kl = [fidelity(Model(net), one.fold(net), held).kl for one in (plain, plan)]
    assert kl[1] < 0.8 * kl[0]


@pytest.mark.slow
def test_new_biases_of_a_transformer_are_an_option_of_its_configuration(tmp_path):
    draw = torch.Generator().manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=32)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    ids = torch.randint(0, 40, (12, 9), generator=draw)
    rule = RTN(bits=3, group=8, layers=("*.mlp.*", "lm_head"))
    plan = correct_biases(rule.plan(model), model, open_inputs(model, ids))
    assert dict(plan.config) == {"mlp_bias": True}
    assert plan.figures == {"biases": 6, "without_bias": 1}  # no option gives the head one
    plan.save(model, tmp_path / "new")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    with torch.no_grad():
        wanted = plan.fold(model)(ids).logits
        torch.testing.assert_close(again(ids).logits, wanted)
        assert not torch.equal(rule.plan(model).fold(model)(ids).logits, wanted)


def test_plans_without_a_mean_to_keep_are_refused():
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    inputs = open_inputs(Model(net), torch.rand(60, 6, generator=torch.Generator().manual_seed(0)))
    scaled = AWQ(bits=4, group=4).plan(net, {"calibration": inputs})
    assert scaled.figures["scaled"] == 1
    with pytest.raises(InputError, match=r"scales those of 1 layers\. Use gptq or rtn"):
        correct_biases(scaled, net, inputs)
    with pytest.raises(InputError, match="changes none"):
        correct_biases(RewritePlan.of(net, {}), net, inputs)


def test_examples_that_are_not_finite_are_left_out_and_counted():
    draw = torch.Generator().manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    x = torch.rand(60, 6, generator=draw)
    plan, fix = RTN(bits=2).plan(net), correct_biases
    wanted = fix(plan, net, open_inputs(Model(net), x[2:])).fold(net)
    x[0], x[1] = float("nan"), 1e30
    with pytest.warns(SondeWarning, match=r"2 examples of 60 .* left out"):
        got = fix(plan, net, open_inputs(Model(net), x)).fold(net)
    torch.testing.assert_close(got(x[2:]), wanted(x[2:]))
    with pytest.warns(SondeWarning, match=r"4 of 120 rows at the inputs of layers .* left out"):
        moments = layer_grams(net, open_inputs(Model(net), x), progress=False)
    torch.testing.assert_close(fix(plan, net, moments).fold(net)(x[2:]), wanted(x[2:]))
    x[:30] = float("nan")
    for run in (lambda inputs: fix(plan, net, inputs), lambda inputs: layer_grams(net, inputs)):
        with pytest.raises(InputError, match="Expected at most 25%"):
            run(open_inputs(Model(net), x))


def test_a_layer_that_no_example_reaches_keeps_its_bias():
    net: Any = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.rand(20, 5, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(SondeWarning, match=r"no row that is finite reaches self_attn\.out_proj"):
        plan = correct_biases(RTN(bits=2).plan(net), net, open_inputs(Model(net), x))
    assert plan.figures == {"biases": 2, "without_bias": 0}
    assert "self_attn.out_proj.bias" not in plan.changes
