"""Redrawn models: what ignores the weights is found out, what is linear in them is not."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from models import cnn, gpt2
from sonde.core import InputError
from sonde.explain import Attributor, GradTimesInput, Saliency, SanityChecks
from sonde.explain._correlation import pearson, spearman, ssim
from sonde.explain.attribution import Parts
from sonde.explain.sanity import redraw


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Edges(Attributor):
    """Edges of the picture, whatever the model."""

    def _parts(self, function, objective):
        return Parts(function.value.diff(dim=-1, prepend=function.value[..., :1]).abs())


@dataclass(frozen=True)
class Slope(Attributor):
    """The gradient with its sign."""

    def _parts(self, function, objective):
        return Parts(function.gradient(function.value, objective.of)[1])


@pytest.mark.truth("a map of the input alone stays; the gradient of a linear model is its weights")
def test_what_hangs_on_the_input_fails_and_what_hangs_on_the_weights_passes():
    model, x = cnn(), rows(3, 1, 8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    edges = SanityChecks().judge(model, x, Edges())
    assert edges.stages == ("fc", "conv2", "conv1")
    assert edges.absolute.tolist() == edges.signed.tolist() == pytest.approx([1.0, 1.0, 1.0])
    torch.testing.assert_close(edges.ssim, torch.ones(3, dtype=torch.float64))
    assert not edges.is_passed
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    linear = nn.Linear(400, 2)
    found = SanityChecks().judge(linear, rows(2, 400), Slope())
    assert abs(float(found.signed[0])) < 4 / 400**0.5
    assert abs(float(found)) < 4 / 400**0.5
    assert found.is_passed


def test_a_cascade_redraws_what_it_says_and_alone_gives_the_rest_back():
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2))
    weights = net[0].weight.clone()
    seen: list[bool] = []

    @dataclass(frozen=True)
    class Looking(Attributor):
        def _parts(self, function, objective):
            seen.append(torch.equal(net[0].weight, weights))
            return Parts(function.value)

    SanityChecks().judge(net, rows(2, 6), Looking())
    assert seen == [True, True, False]
    seen.clear()
    SanityChecks(stages=1).judge(net, rows(2, 6), Looking())
    assert seen == [True, False]
    seen.clear()
    other = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2))
    alone = SanityChecks(how="independent")
    found = alone.judge(net, rows(2, 6), Looking(), others={"shuffled labels": other})
    assert seen == [True, True, False, True]
    assert found.stages == ("2", "0", "shuffled labels")
    assert torch.equal(net[0].weight, weights)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        SanityChecks().judge(net, rows(2, 6), Breaking())
    assert torch.equal(net[0].weight, weights)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError, match="weights that can be randomised, got none"):
        SanityChecks().judge(nn.Tanh(), rows(2, 6), Saliency())
    with pytest.raises(InputError, match="stages of at least 1, got 0"):
        SanityChecks(stages=0)


@dataclass
class Calls:
    n: int = 0


CALLS = Calls()


@dataclass(frozen=True)
class Breaking(Attributor):
    """Breaks on the first redrawn model."""

    def _parts(self, function, objective):
        CALLS.n += 1
        if CALLS.n > 1:
            raise RuntimeError("broken")
        return Parts(function.value)


def test_weights_of_no_known_layer_are_redrawn_around_their_mean_also_a_single_one():
    own: Any = nn.Module()
    own.many = nn.Parameter(4.0 + 0.5 * rows(5000, seed=5))
    own.one = nn.Parameter(torch.tensor([2.0]))
    before = own.many.detach().clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        redraw([own])
    many = own.many.detach()
    assert (float(many.mean()), float(many.std())) == pytest.approx((4.0, 0.5), rel=0.05)
    assert abs(float(pearson(many[None], before[None]))) < 0.1
    assert float(own.one.detach()) != 2.0


def test_the_target_stays_that_of_the_model_as_it_is():
    model = gpt2()
    targets = []

    @dataclass(frozen=True)
    class Noting(Attributor):
        def _parts(self, function, objective):
            targets.append(objective.target.tolist())
            return Parts(function.value)

    ids = torch.tensor([[3, 7, 2], [9, 4, 1]])
    SanityChecks(stages=2).judge(model, {"input_ids": ids}, Noting())
    assert targets[0] == targets[1] == targets[2] == model(ids).logits[:, -1].argmax(1).tolist()


@pytest.mark.truth("scipy's rank correlation; structural similarity window by window")
def test_likeness_of_maps():
    a, b = rows(4, 30).round(decimals=1), rows(4, 30, seed=1).round(decimals=1)
    expected = [spearmanr(a[i], b[i])[0] for i in range(4)]
    assert spearman(a, b).tolist() == pytest.approx(expected)
    flat = torch.ones(2, 5)
    assert pearson(flat, torch.stack([flat[0], rows(5)])).tolist() == [1.0, 0.0]
    x, y = (rows(1, 9, 10, seed=s).double() for s in (2, 3))
    p, q = (np.asarray(one[0] / one.abs().max()) for one in (x, y))
    each = []
    for i in range(3):
        for j in range(4):
            u, v = p[i : i + 7, j : j + 7], q[i : i + 7, j : j + 7]
            both = ((u - u.mean()) * (v - v.mean())).mean()
            above = (2 * u.mean() * v.mean() + 0.0004) * (2 * both + 0.0036)
            below = (u.mean() ** 2 + v.mean() ** 2 + 0.0004) * (u.var() + v.var() + 0.0036)
            each.append(above / below)
    assert float(ssim(x, y)) == pytest.approx(np.mean(each))


def test_gradients_of_a_trained_net_change():
    model, x = cnn(), rows(4, 1, 8, 8)
    assert float(SanityChecks(stages=1).judge(model, x, GradTimesInput()).absolute[0]) < 0.9
