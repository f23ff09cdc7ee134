"""What of a model counts beside its weights, and what does not."""

import copy

import torch
from torch import nn

from models import gpt2, mlp
from narrow import expect
from sonde.tap import structure


class Said(nn.Identity):
    text = ""

    def extra_repr(self) -> str:
        return self.text


def said(text):
    net = Said()
    net.text = text
    return structure(net)


def test_type_device_hooks_and_wrappers_do_not_count():
    net = mlp()
    first = structure(net)
    hooked = copy.deepcopy(net)
    hooked[0].register_forward_hook(lambda *_: None)
    ran = copy.deepcopy(net)
    ran(torch.zeros(1, expect(nn.Linear, ran[0]).in_features))
    wrapped = expect(nn.Module, torch.compile(net, backend="eager")), nn.DataParallel(net)
    for other in (hooked, ran, net.half(), copy.deepcopy(net).to("meta"), *wrapped, net.train()):
        assert structure(other) == first
    net.compile(backend="eager")
    assert structure(net) == first


def test_what_a_module_says_counts_without_where_it_is():
    assert said("eps=1e-05") != said("eps=1e-06")
    assert said("p=1, device=cuda:0, dtype=torch.float16") == said("p=1, device=cpu, dtype=x")
    assert said("by <f at 0x7f3a>") == said("by <f at 0x11>")


def test_a_module_put_into_a_transformer_counts():
    net = gpt2()
    first = structure(net)
    assert structure(gpt2()) == first
    net.transformer.h[0].mlp.act = nn.Tanh()
    assert structure(net) != first
