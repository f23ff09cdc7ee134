"""An edit from a plain function."""

import pytest
import torch

from sonde.core import EditContext, InputError, Site
from sonde.edit import Function
from sonde.tap import editing
from sonde.testing import check

SITE = Site("layers.0")


def swap(x, site, context):
    """Swap the halves of each row at tokens whose position is even."""
    new = x.roll(x.shape[-1] // 2, -1)
    if context.position is None:
        return new
    return torch.where((context.position % 2 == 0)[..., None], new, x)


@pytest.mark.parametrize("function", [torch.relu, swap])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_it_keeps_the_laws(function, strength):
    check(Function(function, strength))


@pytest.mark.truth("the function called by hand")
def test_it_may_write_into_what_it_gets_and_padding_stays():
    def silence(x):
        x[..., 1:] = 0
        return x

    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Identity())
    net[0].weight.data, net[0].bias.data = torch.eye(4), torch.zeros(4)
    x = torch.randn(2, 3, 4)
    kept = x.clone()
    with torch.no_grad(), editing(net, Function(silence), "0", where=[0, 2]):
        found = net(x)
    assert torch.equal(x, kept)
    assert torch.equal(found[:, 1], x[:, 1])
    assert torch.equal(found[:, ::2, 0], x[:, ::2, 0])
    assert not found[:, ::2, 1:].any()


def test_at_full_strength_nothing_of_the_old_value_is_left_and_others_are_weights():
    x = torch.tensor([float("inf"), 1.0])
    full = Function(lambda x: x.nan_to_num(posinf=3.0)).apply(x, SITE, EditContext())
    assert full.tolist() == [3.0, 1.0]
    beyond = Function(lambda x: 3 * x, 1.5).apply(torch.tensor([2.0]), SITE, EditContext())
    assert beyond.tolist() == [2.0 + 1.5 * (6.0 - 2.0)]


def test_a_function_of_any_number_of_arguments_gets_all_three():
    found = []
    context = EditContext()
    Function(lambda *given: found.extend(given) or given[0]).apply(torch.ones(2), SITE, context)
    assert found[1:] == [SITE, context]


def test_a_function_of_another_form_is_refused():
    with pytest.raises(InputError, match=r"of x, or of \(x, site, context\), got a function of 2"):
        Function(lambda x, y: x)
    assert (
        Function(lambda x, scale=2.0: x * scale).apply(torch.ones(2), SITE, EditContext())[0] == 2
    )
