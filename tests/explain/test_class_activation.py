"""Class activation maps against closed forms of a global average and a linear read-out."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.explain import (
    GradCam,
    GradCamPP,
    HiResCam,
    LayerCam,
    Objective,
    Saliency,
    upsampled,
)
from sonde.explain.attribution import Attributor
from sonde.tap.streams.site_function import SiteFunction


class Maps(nn.Module):
    """Convolution, ReLU, global average, linear: every map has a closed form."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


X = torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(1))


def maps(model: Any):
    return torch.relu(model.conv(X)).detach()


@pytest.mark.truth("closed form: the class activation map")
def test_the_map_of_a_global_average_is_that_of_its_head():
    model, target = Maps(), 2
    weight = model.head.weight[target].detach()
    cam = torch.einsum("k,nkhw->nhw", weight, maps(model))
    objective = Objective(target=target)
    found = GradCam(relu=False).explain(model, X, objective=objective, site="act")
    torch.testing.assert_close(torch.as_tensor(found.value) * 30, cam)
    positive = GradCam().explain(model, X, objective=objective, site="act")
    torch.testing.assert_close(torch.as_tensor(positive.value) * 30, cam.relu())
    high = HiResCam().explain(model, X, objective=objective, site="act")
    whole = torch.as_tensor(high.value).sum((1, 2)) + model.head.bias[target].detach()
    torch.testing.assert_close(whole, model(X)[:, target].detach())
    assert high.signed
    assert not positive.signed


@pytest.mark.truth("the formulas, channel by channel and place by place")
def test_place_by_place_and_alone():
    model, places = Maps(), torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    a = maps(model).requires_grad_(True)
    logit = ((a * places).mean((2, 3)).square() @ model.head.weight.T)[:, 1]
    (g,) = torch.autograd.grad(logit.sum(), a)

    class Squared(Maps):
        def forward(self, x):
            return (self.act(self.conv(x)) * places).mean((2, 3)).square() @ self.head.weight.T

    squared, objective = Squared(), Objective(target=1)
    layer = LayerCam().explain(squared, X, objective=objective, site="act")
    torch.testing.assert_close(layer.value, (g.relu() * a.detach()).sum(1).relu())
    plain = GradCam().explain(squared, X, objective=objective, site="act")
    weighed = torch.einsum("nk,nkhw->nhw", g.mean((2, 3)), a.detach())
    torch.testing.assert_close(plain.value, weighed.relu())
    for n in range(2):
        expected = torch.zeros(5, 6)
        for k in range(4):
            slope, held = g[n, k], a[n, k].detach()
            below = 2 * slope**2 + held.sum() * slope**3
            alpha = torch.where(below != 0, slope**2 / below, torch.zeros(()))
            expected += (alpha * slope.relu()).sum() * held
        found = GradCamPP().explain(squared, X, objective=objective, site="act")
        torch.testing.assert_close(torch.as_tensor(found.value)[n], expected.relu())


def test_maps_over_tokens_leave_the_class_token_out_and_grow_to_the_picture():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.embed(x).mean(1))

    model = Tokens()
    x = torch.randn(2, 7, 4)
    found = GradCam(special=(0,)).explain(model, x, site="embed")
    assert found.by_place.shape == (2, 6)
    assert upsampled(found, (4, 6), grid=(2, 3)).shape == (2, 4, 6)
    with pytest.raises(InputError, match="Leave special tokens out"):
        upsampled(GradCam().explain(model, x, site="embed"), (4, 6), grid=(2, 3))
    with pytest.raises(InputError, match="a layer whose output keeps spatial or token positions"):
        GradCam().explain(model, x)


@pytest.mark.parametrize(("method", "site"), [(GradCam(), "0"), (Saliency(), "input")])
def test_one_forward_for_the_gradient_at_the_point(method: Attributor, site: str):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3))
    x, calls = torch.randn(2, 1, 6, 6), list[int]()
    net(x)
    want = method.at(SiteFunction(net, x, site), Objective())
    net[3].register_forward_hook(lambda *_: calls.append(1))
    found = method.explain(net, x, site=site)
    assert len(calls) == 1
    assert torch.equal(torch.as_tensor(found.value), torch.as_tensor(want.value))
