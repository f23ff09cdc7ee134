"""Divergence of routing against scipy, and a planted router."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from sonde.core import InputError
from sonde.layers import Experts, routing_divergence


@pytest.mark.essential
@pytest.mark.truth("scipy.spatial.distance.jensenshannon of the groups' means")
def test_two_groups_as_scipy():
    draw = torch.Generator().manual_seed(0)
    shares = torch.rand(50, 4, generator=draw).softmax(1).square()
    shares = shares / shares.sum(1, keepdim=True)
    shares[:20, 3] = 0
    group = torch.tensor([7] * 20 + [2] * 30)
    shares = shares / shares.sum(1, keepdim=True)
    means = [shares[group == g].double().mean(0).numpy() for g in (7, 2)]
    wanted = jensenshannon(*means, base=2) ** 2
    assert float(routing_divergence(shares, group)) == pytest.approx(float(wanted), rel=1e-6)
    three = torch.arange(50) % 3
    sides = [shares[three == g].double().mean(0).numpy() for g in range(3)]

    def entropy(p):
        return -sum(v * np.log2(v) for v in p if v > 0)

    wanted = entropy(sum(sides) / 3) - sum(map(entropy, sides)) / 3
    assert float(routing_divergence(shares, three)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.truth("planted: a router that reads the group, and one that cannot")
def test_a_router_that_reads_the_group():
    torch.manual_seed(0)
    layer, group = Experts(4, n_experts=4, k=1).requires_grad_(False), torch.arange(400) % 4
    x = torch.randn(400, 4)
    x[:, 0] = 0
    assert float(routing_divergence(layer.shares(x), group)) < 0.1
    layer.line.weight.copy_(torch.eye(4))
    own = torch.nn.functional.one_hot(group, 4).float()
    assert float(routing_divergence(layer.shares(own), group)) == pytest.approx(2.0)
    assert float(routing_divergence(layer.shares(own[:1].expand(8, -1)), group[:8])) == 0


def test_what_is_refused():
    with pytest.raises(InputError, match="got 3 numbers and 1 groups"):
        routing_divergence(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64))
