"""Channels that clean images do not use: a planted one goes, in the order of means by hand."""

import pytest
import torch
from torch import nn

from backdoor import clean_images, planted, stand
from forgetting import digits
from sonde.core import InputError, Model
from sonde.edit import AdversarialMask, FinePrune
from sonde.edit._channels import Scaled, channel_layers, silenced
from sonde.edit.fine_prune import mean_passed
from sonde.tap import editing
from sonde.weights import RewritePlan


@pytest.mark.truth("a channel that was planted by hand")
def test_the_channel_that_the_trigger_alone_uses_goes_and_accuracy_stays():
    model = Model(planted())
    before = stand(model.module)
    assert before[1] > 0.95
    data = {"clean": clean_images(model)}
    for rule in (FinePrune(epochs=0), FinePrune(epochs=2), AdversarialMask(steps=60)):
        plan = rule.plan(model, data)
        new = plan.fold(model)
        after = stand(new)
        assert not bool(new[0].weight[11].any() | new[0].bias[11].any()), rule
        assert after[1] < 0.1, rule
        assert after[0] > before[0] - 0.05, rule
        assert plan.figures["n_silenced"] < plan.figures["n_channels"] == 12.0
    assert stand(model.module) == before


@pytest.mark.truth("means of a forward by hand")
@torch.no_grad()
def test_channels_go_in_the_order_of_what_passes_the_relu():
    model = Model(planted())
    x = digits()[0][1100:1400]
    by_hand = model.module.get_submodule("0")(x).relu().double().mean((0, 2, 3))
    found = mean_passed(model, clean_images(model), "0")
    torch.testing.assert_close(found, by_hand)
    plan = FinePrune(epochs=0).plan(model, {"clean": clean_images(model)})
    n = int(plan.figures["n_silenced"])
    gone = plan.fold(model)[0].weight.flatten(1).abs().sum(1) == 0
    assert set(gone.nonzero()[:, 0].tolist()) == set(by_hand.argsort()[:n].tolist())


@pytest.mark.truth("a layer whose weights and bias are scaled")
@torch.no_grad()
def test_scaling_channels_is_scaling_weights_and_silence_is_zero():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()
    nn.init.normal_(net.get_parameter("1.bias"))
    x, layers = torch.randn(2, 1, 8, 8), channel_layers("", net)
    assert list(layers) == ["1", "3"]
    factor = {name: torch.rand(len(one.bias)) for name, one in layers.items()}
    other = {name: torch.rand(len(one.bias)) for name, one in layers.items()}
    with editing(net, Scaled(layers, factor, other), list(layers)):
        found = net(x)
    which = {name: torch.arange(len(f)) == 1 for name, f in factor.items()}
    quiet = RewritePlan.of(net, silenced(layers, which)).fold(net)
    assert not bool(quiet[:2](x)[:, 1].any() | quiet(x)[:, 1].any())
    for name, one in layers.items():
        one.weight.mul_(factor[name].view(-1, *[1] * (one.weight.ndim - 1)))
        one.bias.mul_(other[name])
    torch.testing.assert_close(found, net(x))


def test_bad_input_is_refused():
    model = Model(planted())
    bare = clean_images(model, labels=False)
    with pytest.raises(InputError, match="expected clean examples with labels, got none"):
        FinePrune().plan(model, {"clean": bare})
    with pytest.raises(InputError, match="one of 0, got '7'"):
        FinePrune("7").plan(model, {"clean": clean_images(model)})
    flat = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(InputError, match="expected a model with convolutions"):
        AdversarialMask().plan(flat, {"clean": clean_images(flat)})
    with pytest.raises(InputError, match="budget in"):
        FinePrune(budget=1.0)
    with pytest.raises(InputError, match="threshold in"):
        AdversarialMask(threshold=0.0)
