"""Adapters behind gates: bits of the model behind a shut one, requests that do not disturb."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import sonde
from forgetting import accuracy, cnn, digits, items_of
from sonde.core import Add, AffineMap, EditContext, InputError, Model, Reducer, ShapeError, Site
from sonde.data import open_inputs
from sonde.detect import Mahalanobis
from sonde.edit import GatedAdapter, LowRankAdapter, soft_gate
from sonde.edit.gated_adapter import overlap
from sonde.tap import Gate
from sonde.testing import check

DRAW = torch.Generator().manual_seed(0)
EARLY, LATE, DIM = "5", "6", 512
CHANNELS = Reducer("mean", axis=1)


@cache
def world():
    """Return a net that knows ten digits, and images of 3 and 7 and of the others."""
    x, label = digits()
    model = Model(cnn(x[:900], label[:900], steps=60))
    seen = items_of(x[:900], label[:900])
    return model, {c: open_inputs(model, [i for i in seen if i["label"] == c]) for c in (3, 7)}


@cache
def learned():
    """Return the adapters of two requests, at the flat states."""
    model, data = world()
    rule = GatedAdapter(epochs=20)
    first = rule.learn(model, LATE, DIM, data[3], progress=False)
    return first, rule.learn(model, LATE, DIM, data[7], earlier=[first], progress=False)


class First:
    """Scores a row by its first entry."""

    def score(self, x):
        return x[:, 0]


def adapter(rank=2, dim=4):
    return LowRankAdapter(torch.randn(rank, dim, generator=DRAW), torch.randn(dim, rank))


def test_laws():
    torch.manual_seed(0)
    check(adapter())


@pytest.mark.truth("a product of matrices")
def test_it_adds_a_map_of_low_rank_and_folds():
    x, one = torch.randn(3, 5, 4, generator=DRAW), adapter()
    found = one.apply(x, Site("0"), EditContext())
    torch.testing.assert_close(found, x + x @ (one.up @ one.down).T)
    affine = one.as_affine()
    assert isinstance(affine, AffineMap)
    torch.testing.assert_close(affine(x), found)


@pytest.mark.essential
@pytest.mark.truth("a ramp by hand")
def test_a_gate_opens_in_proportion_from_either_side_and_shut_it_keeps_every_bit():
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    x = torch.tensor([[0.0], [1.0], [1.5], [2.0], [9.0]])
    up = Add(torch.tensor([10.0]))
    with sonde.editing(net, up, "1", gate=Gate(First(), 1.0, "0", full=2.0)):
        rising = net(x) - x
    with sonde.editing(net, up, "1", gate=Gate(First(), 2.0, "0", full=1.0)):
        falling = net(x) - x
    assert rising.flatten().tolist() == pytest.approx([0, 0, 5, 10, 10])
    assert falling.flatten().tolist() == pytest.approx([10, 10, 5, 0, 0])
    model, odd = world()[0], torch.randn(4, 1, 8, 8, generator=DRAW)
    with sonde.editing(
        model, learned()[0], LATE, gate=Gate(First(), 1e9, EARLY, CHANNELS, full=2e9)
    ):
        shut = model.module(odd)
    assert torch.equal(shut, model.module(odd))


@pytest.mark.truth("numpy's quantiles of either tail")
def test_a_soft_gate_opens_between_quantiles_whichever_side_is_higher():
    low, high = torch.randn(2, 41, generator=DRAW).double() + torch.tensor([[0.0], [5.0]])
    for others, own, sign in ((low, high, 1), (high, low, -1)):
        gate = soft_gate(First(), others, own, shut_for=0.9, open_for=0.7)
        start = sign * np.quantile((sign * others).numpy(), 0.9)
        full = sign * np.quantile((sign * own).numpy(), 0.3)
        assert (gate.threshold, gate.full) == pytest.approx((start, full))


def test_each_request_is_forgotten_behind_its_gate_and_the_others_stay():
    model: Any = world()[0]
    x, label = digits()
    fresh, truth = x[900:], label[900:]
    before = accuracy(model.module, fresh, truth)
    gates = {}
    for kind in (3, 7):
        with torch.no_grad():
            rows = model.module[:6](x[:900]).mean((2, 3))
        scorer = Mahalanobis().fit(rows[label[:900] == kind])
        score = scorer.score(rows)
        own = label[:900] == kind
        gates[kind] = soft_gate(scorer, score[~own], score[own], EARLY, CHANNELS, open_for=0.85)
    with (
        sonde.editing(model, learned()[0], LATE, gate=gates[3]),
        sonde.editing(model, learned()[1], LATE, gate=gates[7]),
    ):
        after = accuracy(model.module, fresh, truth)
    assert after[3] < 0.65
    assert after[7] < 0.65
    rest = [c for c in range(10) if c not in (3, 7)]
    assert sum(after[c] for c in rest) > sum(before[c] for c in rest) - 0.3


@pytest.mark.truth("rows in the span of the other request's directions")
def test_requests_without_overlap_do_not_disturb_one_another():
    first, second = adapter(), adapter()
    q, _ = torch.linalg.qr(torch.cat([first.down, second.down]).T)
    second = LowRankAdapter(q[:, 2:].T, second.up)
    assert float(overlap(second.down, [first])) < 1e-10
    x = torch.randn(5, 2, generator=DRAW) @ first.down
    moved = second.apply(x, Site("0"), EditContext()) - x
    assert float(moved.abs().max()) < 1e-5
    a, b = learned()
    assert float(overlap(b.down, [a])) < 0.1 * float(b.down.square().sum())


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="Take another detector"):
        soft_gate(First(), torch.arange(9.0), torch.arange(9.0))
    with pytest.raises(ShapeError, match="expected dim=4"):
        adapter().apply(torch.ones(2, 3), Site("0"), EditContext())
    with pytest.raises(ShapeError, match=r"down \(rank, dim\)"):
        LowRankAdapter(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(InputError, match="expected rank above 0"):
        GatedAdapter(rank=0)
    with pytest.raises(InputError, match="full to differ from the threshold"):
        Gate(First(), 1.0, full=1.0)
