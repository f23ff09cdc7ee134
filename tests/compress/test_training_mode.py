"""A model in training mode is compared as it answers, in eval mode, and is left as it was.

A factory that does not call ``eval()`` returns such a model; so does a net in the middle of a
training, with some parts frozen in eval mode.
"""

import copy

import pytest
import torch
import transformers
from torch import nn

from sonde import load
from sonde.compress import (
    PruneChannels,
    RecentCache,
    cross_layer_moments,
    expected_attention_of,
    fidelity,
)
from sonde.compress._distilled import answers_of as logits_of
from sonde.compress.alternate_slim import disturbed_taylor
from sonde.data import open_inputs
from sonde.edit import find_backdoor
from sonde.run.compressing.caches import try_caches
from sonde.run.compressing.choosing import require_still_weights
from sonde.run.compressing.timing import speeds


def trained_net(seed: int) -> nn.Sequential:
    """Return a net with running statistics far from those of its inputs, and one frozen norm."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    for norm in (net[1], net[5]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 3.0)
    net.train()[5].eval()
    return net


def state_of(net: nn.Module) -> tuple[dict[str, torch.Tensor], list[bool]]:
    return copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]


def assert_as_before(net: nn.Module, before: tuple[dict[str, torch.Tensor], list[bool]]) -> None:
    tensors, modes = before
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(x, tensors[name]) for name, x in net.state_dict().items())


def items(n: int) -> list[dict[str, torch.Tensor | int]]:
    draw = torch.Generator().manual_seed(3)
    return [{"x": 2 + 3 * torch.rand(3, 11, 9, generator=draw), "label": i % 4} for i in range(n)]


@pytest.mark.truth("plain torch on copies in eval mode")
def test_a_net_in_training_mode_is_compared_as_it_answers():
    net, other = trained_net(0), trained_net(0)
    with torch.no_grad():
        other[9].weight.mul_(1.3)
    model = load(net)
    inputs = open_inputs(model, items(30))
    before, before_other = state_of(net), state_of(other)
    found = fidelity(model, other, inputs)
    x = torch.stack([item["x"] for item in items(30)])
    with torch.no_grad():
        p, q = (copy.deepcopy(one).eval()(x).double().log_softmax(1) for one in (net, other))
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    speeds(model, other, inputs, runs=6)
    require_still_weights(model, inputs)
    logits_of(net, (x,), {})
    disturbed_taylor(model, inputs, 0)
    find_backdoor(model, inputs, n_images=8, steps=2, progress=False)
    assert_as_before(net, before)
    assert_as_before(other, before_other)


def test_channels_are_pruned_from_a_net_in_training_mode():
    net = trained_net(1)
    model = load(net)
    inputs = open_inputs(model, items(40))
    plan = PruneChannels(remove=0.3).plan(net, {"calibration": inputs})
    fidelity(model, plan.fold(net), inputs)
    small = plan.fold(net)  # refused if the comparison had moved a running mean
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


@pytest.mark.truth("the same model in eval mode")
def test_caches_are_tried_without_dropout():
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.4,
    )
    found = []
    net = transformers.LlamaForCausalLM(config)
    for mode in (False, True):
        model = load(net.train(mode))
        inputs = open_inputs(model, [{"input_ids": torch.arange(3, 23) % 40} for _ in range(3)])
        before = state_of(net)
        rule = RecentCache(budget=8)
        (trial,) = try_caches(model, inputs, [rule], progress=False)
        rules = expected_attention_of(model, inputs, progress=False)
        moments = cross_layer_moments(model, inputs, layers=2, progress=False)
        found.append((trial.divergence_nats, rules[1].queries.mean, moments.keys[0].mean))
        assert_as_before(net, before)
    (a, b, c), (d, e, f) = found
    assert a == pytest.approx(d, rel=0, abs=0)
    assert torch.equal(b, e)
    assert torch.equal(c, f)
