"""What of a model counts beside its weights, and what does not."""

import copy
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from models import gpt2, mlp
from narrow import expect
from sonde import load
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


@dataclass
class Shape:
    width: int = 3
    note: str = "a"


class Reads(nn.Module):
    """Reads settings, counts its calls, keeps its last input and is told where it runs."""

    def __init__(self, how="mean", **given) -> None:
        super().__init__()
        self.how, self.power, self.axes, self.keep = how, 1.5, (1, 2), False
        self.shape, self.calls, self.last, self.device = Shape(), 0, "", "cpu"
        self.note_of_the_author = "draft"
        for name, value in given.items():
            setattr(self, name, value)

    def reduced(self, x):
        return getattr(x, self.how)(self.axes, keepdim=getattr(self, "keep"))  # noqa: B009

    def forward(self, x):
        self.calls += 1
        self.last = f"{x.shape}"
        x = x.to(self.device)
        return self.reduced(x.abs() ** self.power * self.shape.width)


class Derived(Reads):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.truth("models with the same weights whose outputs differ")
@pytest.mark.parametrize("kind", [Reads, Derived])
def test_plain_attributes_that_a_forward_reads_count(kind):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(kind())
    first, answer = structure(net), net(x)
    others = ({"power": 1.25}, {"axes": (-1,)}, {"keep": True}, {"shape": Shape(4)})
    for given in ({"how": "sum"}, *others):
        twin = nn.Sequential(kind(**given))
        other = twin(x)
        assert other.shape != answer.shape or not torch.equal(other, answer), given
        assert structure(twin) != first, given
    for unread in ({"shape": Shape(note="b")}, {"note_of_the_author": "final"}):
        assert structure(nn.Sequential(kind(**unread))) == first
    changed = expect(Reads, net[0])
    changed.how = "amax"
    assert structure(net) != first


def test_counters_caches_and_places_do_not_count():
    net = Reads()
    first = structure(net)
    for _ in range(3):
        net(torch.ones(2, 3, 4))
    assert net.calls == 3
    assert structure(net) == first == structure(net.eval())
    net.device = "cuda:0"
    assert structure(net) == first


@pytest.mark.slow
def test_shipped_models_hash_alike_in_every_process():
    names = ("digits", "stdlib")
    code = (
        "from sonde.data import load\nfrom sonde.tap import structure\n"
        f"for name in {names}: print(structure(load('sonde:' + name, device='cpu').module))"
    )
    here = [structure(load(f"sonde:{name}", device="cpu").module) for name in names]
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert other.stdout.split() == here
