"""Relevance against rules written out unit by unit, and what must be conserved."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import llama
from sonde.core import InputError, SiteError
from sonde.explain import GradTimesInput, Objective, Relevance


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(bias, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 7, bias=bias), nn.ReLU(), nn.Linear(7, 3, bias=bias)]
    return nn.Sequential(*layers).double()


@pytest.mark.truth("gradient times input, which it is without biases for ReLUs")
def test_without_biases_it_is_gradient_times_input():
    model, x = net(bias=False), rows(4, 5)
    found = Relevance(epsilon=1e-12).explain(model, x)
    torch.testing.assert_close(found.value, GradTimesInput().explain(model, x).value)
    torch.testing.assert_close(torch.as_tensor(found.value).sum(1), found.objective)
    assert found.flags == ()


@pytest.mark.truth("the epsilon rule unit by unit in plain loops")
def test_the_epsilon_rule_unit_by_unit():
    model, x, eps = net(bias=True), rows(2, 5, seed=1), 0.1
    found = Relevance(epsilon=eps).explain(model, x, objective=Objective(target=2))
    w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    for n in range(2):
        z1 = w1 @ x[n] + b1
        h = z1.relu()
        z2 = w2 @ h + b2
        r2 = z2 * torch.tensor([0.0, 0.0, 1.0])
        r1 = torch.zeros(7, dtype=torch.float64)
        for j in range(3):
            r1 += h * w2[j] / (z2[j] + eps * (1 if z2[j] >= 0 else -1)) * r2[j]
        r0 = torch.zeros(5, dtype=torch.float64)
        for j in range(7):
            r0 += x[n] * w1[j] / (z1[j] + eps * (1 if z1[j] >= 0 else -1)) * r1[j]
        torch.testing.assert_close(torch.as_tensor(found.value)[n], r0)
    gap = found.objective - torch.as_tensor(found.value).sum(1)
    torch.testing.assert_close(found.gap, gap)
    assert "incomplete" in found.flags


@pytest.mark.truth("the gamma rule of a convolution as a matrix, unit by unit")
def test_the_gamma_rule_of_a_convolution():
    torch.manual_seed(0)
    conv, head = nn.Conv2d(1, 2, 2).double(), nn.Linear(8, 1, bias=False).double()
    model = nn.Sequential(conv, nn.Flatten(), head)
    x = rows(1, 1, 3, 3).abs()
    found = Relevance(epsilon=1e-12, gamma=0.5).explain(model, x, objective=Objective(target=0))
    eye = torch.eye(9, dtype=torch.float64).reshape(9, 1, 3, 3)
    w = F.conv2d(eye, conv.weight).flatten(1).detach()
    z = model[:2](x)[0].detach()
    r = z * head.weight[0].detach()
    raised = w + 0.5 * w.relu()
    assert conv.bias is not None
    bias = conv.bias.detach().repeat_interleave(4)
    share = x.reshape(9, 1) * raised
    expected = (share / (share.sum(0) + bias + 0.5 * bias.relu()) * r).sum(1)
    torch.testing.assert_close(torch.as_tensor(found.value).flatten(), expected)


@pytest.mark.truth("closed form of a layer norm whose scale is a constant, behind it a linear head")
def test_a_layer_norm_hands_down_through_its_constant_scale():
    norm, head = nn.LayerNorm((2, 3), eps=0.3), nn.Linear(6, 2, bias=False)
    model, x = nn.Sequential(norm, nn.Flatten(), head).double(), 0.5 * rows(4, 2, 3, seed=2)
    norm.weight.data, norm.bias.data = rows(2, 3, seed=3), rows(2, 3, seed=4)
    found = Relevance(epsilon=1e-12).explain(model, x, objective=Objective(target=1))
    way = (norm.weight.flatten() * head.weight[1]).detach()
    scale = 1 / (x.flatten(1).var(1, correction=0, keepdim=True) + 0.3).sqrt()
    expected = x.flatten(1) * scale * (way - way.mean())
    torch.testing.assert_close(torch.as_tensor(found.value).flatten(1), expected)


def test_functions_and_modules_that_run_twice_hand_down_alike():
    class Functional(nn.Module):
        def __init__(self, like):
            super().__init__()
            self.like = like

        def forward(self, x):
            first, _, last = self.like
            h = torch.relu(F.linear(x, first.weight, first.bias))
            return F.linear(h, last.weight, bias=last.bias)

    model, x = net(bias=True), rows(3, 5)
    plain = Relevance().explain(model, x)
    torch.testing.assert_close(Relevance().explain(Functional(model), x).value, plain.value)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.act, self.one = nn.GELU(), nn.Linear(5, 5, bias=False)

        def forward(self, x):
            return self.act(x + self.one(self.act(self.one(x))))

    found = Relevance(epsilon=1e-12).explain(Twice().double(), x)
    torch.testing.assert_close(torch.as_tensor(found.value).sum(1), found.objective)


@pytest.mark.truth("conservation: a transformer without biases hands down its whole logit")
def test_a_transformer_without_biases_keeps_it_all():
    model = llama().double()
    ids = {"input_ids": torch.tensor([[3, 7, 2, 9], [9, 4, 1, 5]])}
    for site in ("input", "model.layers.1"):
        found = Relevance(epsilon=1e-9).explain(model, ids, site=site)
        whole = torch.as_tensor(found.value).flatten(1).sum(1)
        torch.testing.assert_close(whole, found.objective, rtol=1e-4, atol=1e-8)
        assert found.by_place.shape == (2, 4)


def test_what_hides_its_sums_is_refused():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2))
    with pytest.raises(SiteError, match="AttentionRelevance"):
        Relevance().explain(model, torch.randn(2, 3, 8))
    with pytest.raises(InputError, match="epsilon above 0"):
        Relevance(epsilon=0.0)


class Between(nn.Module):
    """A function of a state between two linear layers without biases."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.function = nn.Linear(5, 8, bias=False).double(), function

    def forward(self, x):
        y = self.function(self.a(x))
        width = y.shape[1]
        return y @ torch.randn(width, 3, generator=torch.Generator().manual_seed(1)).to(y)


def in_place(change):
    """Return a function that changes a copy in place and reads the copy afterwards."""

    def function(h):
        h = 1.0 * h
        change(h)
        return h

    return function


PLACED = {
    "tanh": (torch.tanh, in_place(lambda h: h.tanh_())),
    "sigmoid": (torch.sigmoid, in_place(torch.sigmoid_)),
    "silu": (F.silu, in_place(lambda h: F.silu(h, inplace=True))),
    "elu": (F.elu, in_place(lambda h: F.elu(h, 1.0, True))),
    "product": (lambda h: h * h.relu(), in_place(lambda h: h.mul_(h.relu()))),
    "ratio": (lambda h: h / (1 + h.abs()), in_place(lambda h: h.div_(1 + h.abs()))),
    "square": (lambda h: h * h, in_place(lambda h: h.pow_(2))),
}


@pytest.mark.truth("the same function out of place")
@pytest.mark.parametrize("name", PLACED)
def test_what_is_computed_in_place_has_the_rule_of_its_function(name):
    plain, placed = (Relevance().explain(Between(f), rows(4, 5)) for f in PLACED[name])
    torch.testing.assert_close(placed.objective, plain.objective)
    torch.testing.assert_close(placed.value, plain.value)
    assert placed.flags == ()


PASSED = {
    "exponents": (lambda h: h**3, lambda h: h ** torch.full((8,), 3.0).to(h)),
    "exponent": (lambda h: h**3, lambda h: torch.pow(h, exponent=3)),
    "product": (lambda h: h * h.relu(), lambda h: torch.mul(h, other=h.relu())),
    "ratio": (lambda h: h / (1 + h.abs()), lambda h: torch.div(h, other=1 + h.abs())),
    "curve": (torch.tanh, lambda h: torch.tanh(input=h)),
    "base": (lambda h: 2**h, lambda h: torch.pow(2, h)),
}


@pytest.mark.truth("the same function with its operands by position")
@pytest.mark.parametrize("name", PASSED)
def test_operands_have_one_rule_however_they_are_passed(name):
    plain, passed = (Relevance().explain(Between(f), rows(4, 5)) for f in PASSED[name])
    torch.testing.assert_close(passed.value, plain.value)


WHOLE = {
    "selu": F.selu,
    "hardtanh": F.hardtanh,
    "softshrink": F.softshrink,
    "log1p": lambda h: h.abs().log1p(),
    "glu": F.glu,
    "cube": lambda h: h**3,
    "matrix product": lambda h: (h.view(-1, 2, 4) @ h.view(-1, 2, 4).mT).flatten(1),
    "einsum": lambda h: torch.einsum("nij,nkj->nik", h.view(-1, 2, 4), h.view(-1, 2, 4)).flatten(1),
    "power of a scale": lambda h: h * (h.pow(2).mean(1, keepdim=True) + 1e-5) ** -0.5,
}


@pytest.mark.truth("conservation: nothing is lost without biases")
@pytest.mark.parametrize("name", WHOLE)
def test_no_function_loses_relevance(name):
    found = Relevance(epsilon=1e-12).explain(Between(WHOLE[name]), rows(4, 5))
    torch.testing.assert_close(torch.as_tensor(found.value).sum(1), found.objective)


SCALED = {
    "root mean square": (lambda h: F.rms_norm(h, (8,)), lambda h: h),
    "groups": (
        lambda h: F.group_norm(h, 2),
        lambda h: (h.view(-1, 2, 4) - h.view(-1, 2, 4).mean(2, keepdim=True)).flatten(1),
    ),
    "instances": (
        lambda h: F.instance_norm(h.view(-1, 2, 4)).flatten(1),
        lambda h: (h.view(-1, 2, 4) - h.view(-1, 2, 4).mean(2, keepdim=True)).flatten(1),
    ),
    "length": (F.normalize, lambda h: h),
}


@pytest.mark.truth("the norm with its scale written as a number")
@pytest.mark.parametrize("name", SCALED)
def test_scales_of_all_norms_are_constants(name):
    norm, centred = SCALED[name]
    model, x = Between(norm), rows(3, 5)
    with torch.no_grad():
        h = model.a(x)
        scale = norm(h) / centred(h)
    fixed = Between(lambda h: centred(h) * scale)
    found, plain = (Relevance().explain(m, x) for m in (model, fixed))
    torch.testing.assert_close(found.objective, plain.objective)
    torch.testing.assert_close(found.value, plain.value)


def test_an_answer_behind_a_constant_is_refused():
    with pytest.raises(SiteError, match="only through softmax, which the rules treat as a const"):
        Relevance().explain(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), rows(2, 4).float())
