"""Codebooks of weights: clusters against an exact search, what learning gains, and files."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde import Model
from sonde.compress import WeightCodebook, fidelity, layer_grams
from sonde.compress.gptq import loss_of
from sonde.compress.weight_codebook import _Learned, clusters
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights import CodebookLinear


def least_cost(x: torch.Tensor, weight: torch.Tensor, n: int) -> float:
    """Return the cost of the best clusters: every choice of where to cut the sorted numbers."""
    x, order = x.sort()
    weight, size = weight[order], len(x)
    sums = [torch.cat([torch.zeros(1).double(), (weight * x**p).cumsum(0)]) for p in range(3)]
    costs = []
    for cuts in combinations(range(1, size), n - 1):
        ends = torch.tensor([0, *cuts, size])
        mass, first, second = (one[ends[1:]] - one[ends[:-1]] for one in sums)
        costs.append(float((second - first.square() / mass).sum()))
    return min(costs)


@pytest.mark.truth("every choice of where to cut")
def test_clusters_cost_least():
    draw = torch.Generator().manual_seed(0)
    for n in (2, 3, 4):
        x = torch.randn(22, generator=draw, dtype=torch.float64)
        weight = torch.rand(22, generator=draw, dtype=torch.float64) ** 2 + 0.01
        centres = clusters(x, weight, n)
        found = float((weight * (x[:, None] - centres).abs().amin(1).square()).sum())
        least = least_cost(x, weight, n)
        assert found == pytest.approx(least, rel=1e-9)
    many, equal = torch.randn(700, generator=draw, dtype=torch.float64), torch.ones(700).double()
    centres = clusters(many, equal, 2)
    found = float((many[:, None] - centres).abs().amin(1).square().sum())
    assert found <= 1.001 * least_cost(many, equal, 2)
    few = torch.tensor([2.0, -1.0, 2.0, 0.5])
    assert clusters(few, torch.zeros(4), 4).tolist() == [-1.0, 0.5, 2.0, 2.0]


def drawn() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 17), nn.ReLU(), nn.Linear(17, 6)).eval()
    return net, torch.randn(150, 20) @ torch.randn(20, 20)


@pytest.mark.slow
def test_learning_lowers_the_error_and_more_entries_too():
    net, x = drawn()
    grams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    losses = {}
    for learn in ("none", "book", "joint"):
        given: dict[str, Any] = {"bits": 2, "books": 3, "learn": learn}
        plan = WeightCodebook(**given).plan(net, {"calibration": grams})
        losses[learn] = plan.figures["loss"]
        new: Any = plan.fold(net)[0]
        assert isinstance(new, CodebookLinear)
        h = grams.of_layers(["0"]).second_moment
        gaps = [net[i].weight.detach().double() - plan.fold(net)[i].values() for i in (0, 2)]
        seen = [h, grams.of_layers(["2"]).second_moment]
        by_hand = sum(float(((e @ g) * e).sum()) for e, g in zip(gaps, seen, strict=True))
        assert plan.figures["loss"] == pytest.approx(by_hand, rel=1e-4)
        for row in range(17):
            assert len(new.values()[row].unique()) <= 4
    assert losses["joint"] < 0.7 * losses["book"]
    assert losses["book"] < losses["none"]
    wide = [WeightCodebook(bits=b).plan(net, {"calibration": grams}).figures["loss"]
            for b in (1, 2, 3, 4)]  # fmt: skip
    assert wide == sorted(wide, reverse=True)


@pytest.mark.truth("the formula of the class by loops, with autograd of the output error")
def test_scores_start_at_distances_and_follow_the_gradient():
    draw = torch.Generator().manual_seed(5)
    flat = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    x = torch.randn(2, 9, 6, generator=draw, dtype=torch.float64)
    book = (torch.randn(2, 5, generator=draw).double() * torch.tensor([[1.0], [3.0]])).sort().values
    owner, scale = torch.tensor([0, 1, 1, 0]), torch.tensor([0.5, 2.0, 0.7, 1.5]).double()
    parts = [(torch.arange(4)[2 * i : 2 * i + 2], x[i].T @ x[i]) for i in range(2)]
    codes = torch.randint(5, (4, 6), generator=draw)
    learned = _Learned(flat, scale, owner, book, parts, codes)
    value = book[owner].gather(1, codes).requires_grad_()
    for rows, h in parts:
        error = (value - flat)[rows] * scale[rows, None]
        ((error @ h) * error).sum().backward()
    assert value.grad is not None
    slope = value.grad / value.grad.abs().amax(1, keepdim=True)
    expected = torch.empty(4, 6, 5, dtype=torch.float64)
    for i, j, k in torch.cartesian_prod(torch.arange(4), torch.arange(6), torch.arange(5)).tolist():
        own, m = book[owner[i]], int(codes[i, j])
        gap = float(own.diff().mean())
        jump, move = float(own[k] - own[m]), 0.0
        if 0 < abs(k - m) <= 2:
            move = -0.3 * float(slope[i, j]) * math.copysign(1, jump) * math.exp(-abs(jump) / gap)
        expected[i, j, k] = move - abs(float(flat[i, j] - own[k])) / gap
    learned.move_codes(0.3)
    torch.testing.assert_close(learned.scores, expected)


def test_a_strong_gradient_moves_a_weight_to_the_next_entry_and_not_to_the_farthest():
    book = torch.arange(4.0).double()[None]
    flat, h = torch.tensor([[0.1, 3.0]]).double(), torch.tensor([[1.0, 10.0], [10.0, 101.0]])
    parts, owner = [(torch.arange(1), h.double())], torch.zeros(1, dtype=torch.long)
    codes = torch.tensor([[0, 2]])
    learned = _Learned(flat, torch.ones(1).double(), owner, book, parts, codes)
    losses = [loss_of(flat - torch.tensor([[first, 2.0]]), h.double()) for first in (0.0, 1.0, 2.0)]
    assert losses[0] > losses[1] > losses[2]  # the farther jump gains more by itself
    learned.move_codes(100.0)
    assert learned.codes.tolist() == [[1, 3]]


def test_a_weight_of_few_values_is_kept():
    net, x = drawn()
    values = torch.tensor([-0.75, -0.25, 0.5, 1.0])
    codes = torch.randint(4, (17, 20), generator=torch.Generator().manual_seed(1))
    codes[:, 0] = 3  # each row's largest entry is 1
    net[0].weight.data = values[codes] * 2.0 ** torch.arange(-3, 14.0)[:, None]
    rule = WeightCodebook(bits=2, books=1, learn="none", layers=("0",))
    new = rule.plan(net, {"calibration": x}).fold(net)
    assert torch.equal(new[0].values(), net[0].weight)


@pytest.mark.slow
def test_joint_learning_beats_fixed_codes_on_a_trained_net_and_its_folder_opens(tmp_path):
    model = sonde.load("sonde:digits", device="cpu")
    data = open_inputs(model, "sonde:digits/train", limit=100)
    held = open_inputs(model, "sonde:digits/test", limit=60)
    names = ("*.mlp.*",)
    grams, kl = layer_grams(model, data, layers=names, progress=False), {}
    for learn in ("book", "joint"):
        given: dict[str, Any] = {"bits": 2, "layers": names, "learn": learn}
        plan = WeightCodebook(**given).plan(model, {"calibration": grams})
        kl[learn] = fidelity(model, plan.fold(model), held).kl
    print(kl)
    assert kl["joint"] < 0.7 * kl["book"]
    plan.save("sonde:digits", tmp_path / "small")
    again = sonde.load(str(tmp_path / "small"), device="cpu").module
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x).logits, plan.fold(model)(x).logits)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="whole bits from 1 to 8, or None, got 9"):
        WeightCodebook(bits=9)
    with pytest.raises(InputError, match=r"books in \[1, 256\], got 0"):
        WeightCodebook(books=0)
    net, x = drawn()
    assert WeightCodebook(bits=None).plan(net, {"calibration": x}).fold(net) is net
