"""A step inside a loss: values of SGD, and gradients by finite differences through its step."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from sonde.core import InputError
from sonde.train import LearnedViews, virtual_step

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VIEW = torch.tensor([0, 1]).repeat_interleave(4)


def parts():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return net, LearnedViews(3, 0.5, width=4, margin=-1.0, weight=0.3).double()


def by_sgd(net, views):
    """Return the loss on fresh rows after a real step of SGD on the loss of learned views."""
    other = deepcopy(net)
    optimiser = torch.optim.SGD(other.parameters(), 0.2)
    optimiser.zero_grad()
    views(other(X), VIEW).backward()
    optimiser.step()
    return other, mse_loss(other(X.flip(1)), X)


@pytest.mark.essential
@pytest.mark.truth("torch.optim.SGD, and central differences through its step")
def test_the_step_is_that_of_sgd_and_has_gradients():
    net, views = parts()
    stepped = virtual_step(net, views(net(X), VIEW), 0.2)
    other, wanted = by_sgd(net, views)
    for name, p in other.named_parameters():
        torch.testing.assert_close(stepped[name], p, rtol=1e-6, atol=1e-9)
    outer = mse_loss(functional_call(net, stepped, X.flip(1)), X)
    assert outer.item() == pytest.approx(wanted.item(), rel=1e-6)
    weight = views.maps[0][0].weight
    slope = torch.autograd.grad(outer, weight)[0]
    for at in ((0, 0), (2, 1), (3, 2)):
        sides = []
        for move in (1e-4, -1e-4):
            moved = deepcopy(views)
            with torch.no_grad():
                moved.maps[0][0].weight[at] += move
            sides.append(by_sgd(net, moved)[1].item())
        assert slope[at].item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-3, abs=1e-9)
    assert slope.abs().max() > 1e-6


def test_what_stays_and_what_is_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight.requires_grad_(False)
    before = deepcopy(net.state_dict())
    stepped = virtual_step(net, net[0](torch.ones(1, 2)).sum(), 0.5)
    assert stepped["1.weight"] is net[1].weight
    assert stepped["1.bias"] is net[1].bias
    torch.testing.assert_close(stepped["0.weight"], before["0.weight"] - 0.5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(InputError, match="got 2 numbers with a gradient and 3 parameters"):
        virtual_step(net, net(torch.ones(1, 2))[0], 0.1)
    with pytest.raises(InputError, match="without a gradient"):
        virtual_step(net, torch.zeros(()), 0.1)
