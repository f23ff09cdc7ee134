"""Adapters beside a frozen layer: nothing at the start, their sum, and a gate over them."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.layers import ParallelAdapters, with_adapters


def layer(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))


X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gated", [False, True])
def test_fresh_adapters_change_no_bit(gated):
    base = layer()
    assert torch.equal(ParallelAdapters(base, 6, 3, gated=gated).eval()(X), base(X))


@pytest.mark.truth("an adapter beside the layer, by hand")
@torch.no_grad()
def test_one_adapter_is_added_and_a_gate_gives_each_its_share():
    base = layer()
    adapted: Any = ParallelAdapters(base, 6, 2, width=3).eval()
    for adapter in adapted.adapters:
        nn.init.normal_(adapter.up.weight)
    one, two = (a.up(torch.relu(a.down(X))) for a in adapted.adapters)
    torch.testing.assert_close(adapted(X), base(X) + one + two)
    gated = ParallelAdapters(base, 6, 2, width=3, gated=True).eval()
    gated.adapters = adapted.adapters
    torch.testing.assert_close(gated(X), base(X) + (one + two) / 3)
    for either in (adapted, gated):
        torch.testing.assert_close(either(X[:, 2]), either(X)[:, 2])


def test_training_moves_the_adapters_alone_and_the_penalty_sees_it():
    net = nn.Sequential(nn.Linear(6, 6), layer())
    new = with_adapters(net, ["1"], 6)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    assert float(new[1].change_on(X).detach()) == 0.0
    optimizer = torch.optim.SGD([p for p in new.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        new(X).square().mean().backward()
        optimizer.step()
    assert float(new[1].change_on(X).detach()) > 0.0
    after = {**new[0].state_dict(prefix="0."), **new[1].layer.state_dict(prefix="1.")}
    assert all(torch.equal(after[name], x) for name, x in before.items())
    with pytest.raises(InputError, match="no layer 'mlp'"):
        with_adapters(net, ["mlp"], 6)
