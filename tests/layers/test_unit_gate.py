"""Gates over units, fields, tokens and channels."""

import math

import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import InputError, ShapeError
from sonde.layers import UnitGate, conditioned


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.truth("values printed in the handbook, and the formula by hand")
def test_continuation():
    gate = UnitGate(2)
    with torch.no_grad():
        gate.c.copy_(torch.tensor([0.1, -0.1]))
    for t, first, second in ((0.0, 1.0, 0.9048), (0.5, 1.9032, 0.0016), (1.0, 1.9048, 0.0)):
        gate.progress.fill_(t)
        assert gate.gates().tolist() == pytest.approx([first, second], abs=6e-5)
    gate.harden()
    assert gate(torch.tensor([[3.0, -7.0]])).tolist() == [[3.0, 0.0]]


@pytest.mark.truth("the formula by hand")
def test_fields_share_a_gate_and_pairs_multiply():
    gate = UnitGate(5, over="fields", fields=(2, 3)).double()
    with torch.no_grad():
        gate.c.copy_(torch.tensor([0.7, -0.4]))
    gate.progress.fill_(0.1)
    tau = 5000**0.1
    a, b = (sigmoid(c * tau) / sigmoid(0.1) for c in (0.7, -0.4))
    x = draw(3, 5)
    torch.testing.assert_close(gate(x), x * torch.tensor([a, a, b, b, b], dtype=torch.float64))
    assert gate.pair_gates().flatten().tolist() == pytest.approx([a * a, a * b, a * b, b * b])
    fixed = UnitGate(3, score="fixed", kappa=3.0).double()
    torch.testing.assert_close(fixed(x[:, :3]), x[:, :3] / torch.tensor([1.0, 3.0, 9.0]))


@pytest.mark.truth("a network run by hand on each row's condition")
def test_conditioned():
    gate = UnitGate(4, score="conditioned", condition=3).double()
    nn.init.normal_(gate.net[2].weight, generator=torch.Generator().manual_seed(1))
    x, c = draw(2, 6, 4), draw(2, 3, seed=2)
    wanted = torch.stack([2 * torch.sigmoid(gate.net(c[i])) * x[i] for i in range(2)])
    torch.testing.assert_close(gate(x, c), wanted)
    each = draw(2, 6, 3, seed=4)
    torch.testing.assert_close(
        gate(x, each)[1, 2], 2 * torch.sigmoid(gate.net(each[1, 2])) * x[1, 2]
    )
    net = sonde.inserted(nn.Sequential(nn.Linear(2, 4)).double(), {"0": gate})
    with conditioned(net, c):
        inside = net(draw(2, 2))
    torch.testing.assert_close(inside, gate(net(draw(2, 2)), c))
    with pytest.raises(ShapeError, match="condition=3"):
        gate(x, draw(2, 5))
    with (
        pytest.raises(InputError, match="a layer that reads a condition"),
        conditioned(nn.Linear(2, 2), c),
    ):
        pass


@pytest.mark.truth("tokens gated in a loop")
def test_tokens():
    x, a = draw(2, 5, 4), torch.rand(2, 5, generator=torch.Generator().manual_seed(3)).double()
    found = UnitGate(4, over="tokens", score="class_attention", quantile=0.6)(x, a)
    for row in range(2):
        limit = sorted(a[row].tolist())
        limit = limit[2] + 0.4 * (limit[3] - limit[2])
        for t in range(5):
            factor = 1 + a[row, t] if float(a[row, t]) >= limit else 1 - a[row, t]
            torch.testing.assert_close(found[row, t], factor * x[row, t])
    gate = UnitGate(4, over="tokens", k=2).double()
    kept = gate(x).abs().sum(-1) > 0
    order = (x @ gate.line.weight[0]).argsort(-1, descending=True)
    assert [sorted(o[:2].tolist()) for o in order] == [k.nonzero().flatten().tolist() for k in kept]


@pytest.mark.truth("a convolution and a squeeze network, by hand")
def test_channels_and_space():
    gate = UnitGate(3, over="channels+space", score="both").double()
    for part in (gate.squeeze[2], gate.space):
        nn.init.normal_(part.weight, generator=torch.Generator().manual_seed(5))
    x = draw(2, 3, 9, 8)
    channel = torch.sigmoid(gate.squeeze(x.flatten(2).mean(2)))
    padded = nn.functional.pad(torch.stack((x.mean(1), x.max(1).values), 1), (3, 3, 3, 3))
    spot = torch.sigmoid((padded[1, :, 4:11, 2:9] * gate.space.weight[0]).sum())
    torch.testing.assert_close(gate(x)[1, :, 4, 2], 4 * channel[1] * spot * x[1, :, 4, 2])


def test_unknown_pair_is_refused():
    with pytest.raises(InputError, match="expected over and score"):
        UnitGate(4, over="tokens", score="pooled")
    with pytest.raises(InputError, match="that sum to 4"):
        UnitGate(4, over="fields", fields=(2, 3))
