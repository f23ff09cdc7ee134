"""A model as a function of a site: the whole forward's numbers, without the calls before it."""

import pytest
import torch
from torch import nn

from models import gpt2
from sonde.core import SiteError
from sonde.tap.streams.site_function import SiteFunction

IDS = torch.tensor([[5, 9, 3, 7], [4, 8, 2, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}


def counted(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("site", ["transformer.h.1", "transformer.h.1.mlp:in", "transformer.h.2"])
def test_from_a_named_site_on_it_is_the_whole_forward_with_other_states(site):
    model = gpt2()
    function = SiteFunction(model, INPUTS, site)
    assert torch.equal(function.run(function.value).logits, model(**INPUTS).logits)
    values = torch.randn(6, *function.value.shape[1:], requires_grad=True)
    one = function.run(values, 3).logits
    name, _, port = site.partition(":")
    module = model.get_submodule(name)

    def put(i, j):
        x = values[[j, 3 + j]].detach().requires_grad_(True)
        if port == "in":
            handle = module.register_forward_pre_hook(lambda m, args: (x,))
        else:
            handle = module.register_forward_hook(
                lambda m, args, out: (x, *out[1:]) if isinstance(out, tuple) else x
            )
        whole = model(**INPUTS).logits
        handle.remove()
        return x, whole

    for j in range(3):
        x, whole = put(0, j)
        torch.testing.assert_close(one[[j, 3 + j]], whole, atol=1e-6, rtol=1e-6)
        (expected,) = torch.autograd.grad(whole.square().sum(), x)
        (slope,) = torch.autograd.grad(one[[j, 3 + j]].square().sum(), values, retain_graph=True)
        torch.testing.assert_close(slope[[j, 3 + j]], expected, atol=1e-5, rtol=1e-5)


def test_what_comes_before_a_named_site_runs_once():
    model = gpt2()
    early, late = counted(model.transformer.h[0].mlp.c_fc), counted(model.transformer.h[2].mlp.c_fc)
    function = SiteFunction(model, INPUTS, "transformer.h.1")
    for _ in range(4):
        function.run(function.value)
    assert (len(early), len(late)) == (1, 5)
    whole = SiteFunction(model, INPUTS)
    for _ in range(4):
        whole.run(whole.value)
    assert len(early) == 6


def test_the_input_of_a_site_is_that_of_its_module():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    module, given = SiteFunction(net, x, "2").input_of_site()
    assert module is net[2]
    torch.testing.assert_close(given, net[:2](x))
    with pytest.raises(SiteError, match="the output of a module"):
        SiteFunction(net, x).input_of_site()
