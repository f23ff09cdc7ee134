"""Terms of weight gradients against those that autograd gives a real layer, formed in full."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from models import gpt2
from sonde.core import InputError, SiteError
from sonde.explain import ClassSensitivity, MetaSaliency, NormGrad, Objective, combined
from sonde.explain.normgrad import How, _factors
from sonde.tap.streams.site_function import SiteFunction

X = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = Objective(target=1)
CONVS = [{}, {"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"groups": 4}]


def net(first, seed=0) -> Any:
    torch.manual_seed(seed)
    width = first(X.float()).flatten(1).shape[1]
    layers = [first, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3)]
    return nn.Sequential(*layers).double()


@pytest.mark.truth("autograd's weight gradient, and each place's matrix formed in full")
@pytest.mark.parametrize("options", CONVS, ids=str)
def test_terms_of_a_real_convolution_add_up_to_its_weight_gradient(options):
    torch.manual_seed(0)
    model = net(nn.Conv2d(4, 8, 3, **options))
    function = SiteFunction(model, X, "0")
    _, gradient, _ = function.gradient(function.value, TARGET.at(function).of)
    g, h = _factors(function, gradient, "own")
    terms = torch.einsum("ngop,ngip->npgoi", g, h)
    model.zero_grad()
    model(X)[:, 1].sum().backward()
    expected = model[0].weight.grad
    total = terms.sum((0, 1)).reshape(expected.shape)
    torch.testing.assert_close(total, expected, atol=1e-10, rtol=0)
    shape = function.value.shape
    flat = terms.flatten(2)
    truth = {
        "norm": flat.norm(dim=2),
        "sum": flat.sum(2),
        "max": flat.amax(2),
        "positive_norm": flat.relu().norm(dim=2),
    }
    for how in get_args(How):
        found = NormGrad("own", how).explain(model, X, objective=TARGET, site="0")
        torch.testing.assert_close(found.value, truth[how].reshape(2, *shape[2:]))
        assert found.signed == (how in ("sum", "max"))


@pytest.mark.truth(
    "a layer that does nothing, put in for real; gradients of its weights by autograd"
)
@pytest.mark.parametrize("kind", ["bias", "scaling", "conv1x1", "conv3x3"])
def test_a_layer_that_does_nothing_put_in_for_real(kind):
    torch.manual_seed(0)
    model = net(nn.Conv2d(4, 5, 2))
    size = {"bias": 5, "scaling": 5, "conv1x1": (5, 5, 1, 1), "conv3x3": (5, 5, 3, 3)}[kind]
    weight = torch.zeros(size, dtype=torch.float64)
    if kind == "scaling":
        weight += 1.0
    if kind.startswith("conv"):
        middle = weight.shape[-1] // 2
        weight[range(5), range(5), middle, middle] = 1.0
    weight.requires_grad_(True)
    h = model[0](X)
    same = {
        "bias": lambda: h + weight[:, None, None],
        "scaling": lambda: h * weight[:, None, None],
    }.get(kind, lambda: nn.functional.conv2d(h, weight, padding="same"))()
    model[1:](same)[:, 1].sum().backward()
    assert weight.grad is not None
    function = SiteFunction(model, X, "0")
    _, gradient, _ = function.gradient(function.value, TARGET.at(function).of)
    total = torch.einsum("ngop,ngip->goi", *_factors(function, gradient, kind))
    torch.testing.assert_close(total.flatten(), weight.grad.flatten())


def test_the_sum_of_a_scaling_is_gradient_times_activation_at_tokens_too():
    model, ids = gpt2(), {"input_ids": torch.tensor([[3, 7, 2], [9, 4, 1]])}
    function = SiteFunction(model, ids, "transformer.h.1:out")
    _, gradient, _ = function.gradient(function.value, TARGET.at(function).of)
    found = NormGrad("scaling", "sum").at(function, TARGET)
    torch.testing.assert_close(found.value, (gradient * function.value).sum(2))
    with pytest.raises(InputError, match="conv3x3 needs maps"):
        NormGrad("conv3x3").at(function, TARGET)
    with pytest.raises(SiteError, match="for 'own', got"):
        NormGrad("own").at(function, TARGET)
    with pytest.raises(InputError, match="keeps spatial or token positions"):
        NormGrad().explain(nn.Linear(3, 2), torch.ones(2, 3))


@pytest.mark.truth("the step by hand on a real layer of 1 x 1, one example at a time")
def test_the_step_of_learning_is_that_of_a_real_layer():
    torch.manual_seed(0)
    model = net(nn.Conv2d(4, 5, 2))
    found = MetaSaliency(NormGrad("bias", "sum"), step=0.3).explain(
        model, X, objective=TARGET, site="0"
    )
    for i in range(2):
        h = model[0](X[i : i + 1]).detach()
        w = torch.eye(5, dtype=torch.float64)[..., None, None].requires_grad_(True)
        log_p = model[1:](nn.functional.conv2d(h, w)).log_softmax(1)[0, 1]
        (slope,) = torch.autograd.grad(log_p, w)
        moved = nn.functional.conv2d(h, (w + 0.3 * slope).detach()).requires_grad_(True)
        (g,) = torch.autograd.grad(model[1:](moved)[0, 1], moved)
        torch.testing.assert_close(torch.as_tensor(found.value)[i], g[0].sum(0))


def test_what_ignores_the_class_and_what_turns_with_it():
    head = nn.Linear(20, 2, bias=False)
    head.weight.data[1] = -head.weight.data[0]
    model = nn.Sequential(nn.Conv2d(4, 1, 3), nn.Flatten(), head).double()
    assert ClassSensitivity().judge(model, X, NormGrad(), site="0").value == pytest.approx(1.0)
    turned = ClassSensitivity().judge(model, X, NormGrad("scaling", "sum"), site="0")
    assert turned.value == pytest.approx(-1.0)
    assert turned.direction == "lower"


def test_a_constant_map_becomes_zero():
    model = net(nn.Conv2d(4, 5, 3, padding=1))
    one = NormGrad().explain(model, X, objective=TARGET, site="0")
    both = combined([one, one], (7, 6), "geometric")
    assert float(both.amin()) == 0.0
    assert float(both.amax()) == pytest.approx(1.0)
    flat = replace(one, value=torch.full_like(torch.as_tensor(one.value), 3.0))
    assert not combined([one, flat], (7, 6)).any()
    alone = combined([one], (7, 6))
    torch.testing.assert_close(combined([one, flat], (7, 6), "mean"), alone / 2)
    with pytest.raises(InputError, match="each"):
        combined([], (7, 6))
    with pytest.raises(InputError, match=r"step of at least 0, got -1\.0"):
        MetaSaliency(step=-1.0)
