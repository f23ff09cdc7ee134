"""Channels that clean images do not use: a planted one goes, in the order of means by hand."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from backdoor import N, clean_images, planted, stand
from forgetting import digits, items_of
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.edit import AdversarialMask, FinePrune
from sonde.edit._channels import Scaled, accuracy, channel_layers, silenced
from sonde.edit.fine_prune import mean_passed
from sonde.tap import editing
from sonde.weights import RewritePlan

net_with_a_trigger = cache(planted)


@pytest.mark.essential
@pytest.mark.truth("a channel that was planted by hand")
def test_the_channel_that_the_trigger_alone_uses_goes_and_accuracy_stays():
    model = Model(net_with_a_trigger())
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
    model = Model(net_with_a_trigger())
    x = digits()[0][1100:1400]
    by_hand = model.module.get_submodule("0")(x).relu().double().mean((0, 2, 3))
    found = mean_passed(model, clean_images(model), "0")
    torch.testing.assert_close(found, by_hand)
    plan = FinePrune(epochs=0).plan(model, {"clean": clean_images(model)})
    n = int(plan.figures["n_silenced"])
    gone = plan.fold(model)[0].weight.flatten(1).abs().sum(1) == 0
    assert set(gone.nonzero()[:, 0].tolist()) == set(by_hand.argsort()[:n].tolist())


@pytest.mark.truth("channels silenced one by one, and right answers counted")
@torch.no_grad()
def test_channels_go_until_the_next_one_would_cost_more_than_the_budget():
    """A channel that costs nothing goes even where no accuracy may be lost."""
    net: Any = copy.deepcopy(net_with_a_trigger())
    net[0].weight[3], net[0].bias[3] = 0.0, -1.0
    model, right = Model(copy.deepcopy(net)), []
    x, label = (part[N : N + 300] for part in digits())
    for channel in net[0](x).relu().mean((0, 2, 3)).argsort(stable=True):
        right.append(int((net(x).argmax(1) == label).sum()))
        net[0].weight[channel], net[0].bias[channel] = 0.0, 0.0
    stops: list[int] = []
    for budget in (0.0, 0.101):
        fails = [i for i, n in enumerate(right) if n < right[0] - budget * 300]
        stops.append(fails[0] - 1)
        plan = FinePrune(epochs=0, budget=budget).plan(model, {"clean": clean_images(model)})
        assert plan.figures["n_silenced"] == stops[-1] > 0
    assert any(n % 2 for n in stops)


@torch.no_grad()
def test_accuracy_is_the_share_of_right_answers_among_known_ones():
    model, (x, label) = Model(net_with_a_trigger()), digits()
    right = model.module(x).argmax(1) == label
    hits, miss = right.nonzero()[:2, 0].tolist(), int((~right).nonzero()[0, 0])
    for chosen, want in (([hits[0]], 1.0), ([miss, *hits], 2 / 3)):
        items = [*items_of(x[chosen], label[chosen]), {"input": x[miss], "label": -1}]
        assert accuracy(model, model.module, open_inputs(model, items)) == want


@pytest.mark.truth("two steps of descent with momentum, on a net whose weights are scaled by hand")
def test_masks_without_a_change_to_resist_descend_the_loss_of_scaled_weights():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 12, 3)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(432, 10)).eval()
    nn.init.normal_(net.get_parameter("0.bias"))
    x, label = (part[:60] for part in digits())
    mask, speed = torch.ones(12), torch.zeros(12)
    for _ in range(2):
        mask.requires_grad_()
        weight = {"0.weight": conv.weight.detach() * mask[:, None, None, None]}
        loss = nn.functional.cross_entropy(functional_call(net, weight, x), label)
        speed = 0.9 * speed + torch.autograd.grad(loss, mask)[0]
        mask = (mask.detach() - 5.0 * speed).clamp(0, 1)
    rule = AdversarialMask(eps=1e-9, alpha=0.5, rate=5.0, steps=2)
    model = Model(net)
    found = rule.masks(model, open_inputs(model, items_of(x, label)))["0"]
    torch.testing.assert_close(found, mask, rtol=1e-4, atol=1e-5)
    assert int(((mask > 0.01) & (mask < 0.99)).sum()) >= 3, mask


def test_changes_to_resist_start_anywhere_between_both_bounds():
    draw = torch.Generator().manual_seed(0)
    start = AdversarialMask(eps=0.3)._random(torch.ones(2000), draw).detach()
    assert -0.3 <= float(start.min()) < -0.29
    assert 0.29 < float(start.max()) <= 0.3
    assert abs(float(start.mean())) < 0.03


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
    which = {name: torch.arange(len(f)) == 1 for name, f in factor.items()}
    quiet = RewritePlan.of(net, silenced(layers, which)).fold(net)
    assert not bool(quiet[:2](x)[:, 1].any() | quiet(x)[:, 1].any())
    for weight, bias in ((factor, other), (factor, {}), ({}, other)):
        with editing(net, Scaled(layers, weight, bias), list(layers)):
            found = net(x)
        by_hand = copy.deepcopy(net)
        for name, one in channel_layers("", by_hand).items():
            if name in weight:
                one.weight.mul_(weight[name].view(-1, *[1] * (one.weight.ndim - 1)))
            if name in bias:
                one.bias.mul_(bias[name])
        torch.testing.assert_close(found, by_hand(x))


def test_bad_input_is_refused():
    model = Model(net_with_a_trigger())
    bare = clean_images(model, labels=False)
    with pytest.raises(InputError, match="expected clean examples with labels, got no labels"):
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
