import math

import pytest
import torch
from torch import nn

from sonde import InputError
from sonde.measure import grokking_stages


def addition(m):
    """Return all pairs as two one-hot summands, and their sums modulo ``m``."""
    a, b = torch.cartesian_prod(torch.arange(m), torch.arange(m)).T
    eye = torch.eye(m, dtype=torch.float64)
    return torch.cat([eye[a], eye[b]], 1), (a + b) % m


def part(n, share, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.truth("closed form M / 4, reached by projected gradient ascent from random starts")
@pytest.mark.parametrize("m", [7, 11])
def test_local_maxima_of_the_energy_are_waves_of_one_frequency(m):
    x, label = addition(m)
    goal = nn.functional.one_hot(label).double()
    goal = goal - goal.mean(0)
    w = torch.randn(2 * m, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = grokking_stages({0: (w, torch.zeros(5, m))}, x, label, part(len(x), 0.5))
    for _ in range(1500):
        w = (w / w.norm(dim=0)).requires_grad_()
        energy = 0.5 * (goal.T @ (x @ w).square()).square().sum()
        (slope,) = torch.autograd.grad(energy, w)
        w = w.detach() + 0.3 * slope
    end = grokking_stages({0: (w, torch.zeros(5, m))}, x, label, part(len(x), 0.5))
    assert float(end.energy[0]) == pytest.approx(m / 4, rel=1e-4)
    assert float(end.concentration[0]) == pytest.approx(1.0, abs=1e-4)
    assert float(start.energy[0]) < 0.3 * m / 4
    assert float(start.concentration[0]) < 0.8


@pytest.mark.truth("autograd's gradient with respect to the hidden units, and numpy-like sums")
def test_alignment_interaction_and_movement():
    m = 5
    x, label = addition(m)
    draw = torch.Generator().manual_seed(1)
    first, second = (
        torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((10, 6), (6, m))
    )
    learned = part(len(x), 0.6)
    found = grokking_stages({0: (first, second), 9: (2 * first, second)}, x, label, learned)
    goal = nn.functional.one_hot(label).double()
    goal = (goal - goal.mean(0))[learned]
    hidden = (x[learned] @ first).square().requires_grad_()
    loss = 0.5 * (hidden @ second - goal).square().sum()
    (slope,) = torch.autograd.grad(loss, hidden)
    told = goal @ goal.T @ hidden.detach()
    want = nn.functional.cosine_similarity(-slope.flatten(), told.flatten(), dim=0)
    assert float(found.alignment[0]) == pytest.approx(float(want), rel=1e-9)
    covariance = torch.cov((x @ first).square().T)
    off = covariance - covariance.diagonal().diag()
    share = off.square().sum() / covariance.square().sum()
    assert float(found.interaction[0]) == pytest.approx(float(share), rel=1e-9)
    assert found.moved.tolist() == pytest.approx([0.0, 1.0])
    assert found.energy[0] == pytest.approx(float(found.energy[1]))


def test_stages_of_a_training():
    m = 7
    x, label = addition(m)
    goal = nn.functional.one_hot(label).double()
    goal = goal - goal.mean(0)
    learned = part(len(x), 0.5)
    draw = torch.Generator().manual_seed(0)
    layers = [
        (0.3 * torch.randn(*s, generator=draw, dtype=torch.float64)).requires_grad_()
        for s in ((14, 64), (64, m))
    ]
    optimiser = torch.optim.AdamW(layers, lr=0.02, weight_decay=0.0)
    kept = {}
    for step in range(201):
        if step in (0, 200):
            kept[step] = tuple(w.detach().clone() for w in layers)
        optimiser.zero_grad()
        said = (x[learned] @ layers[0]).square() @ layers[1]
        (said - goal[learned]).square().mean().backward()
        optimiser.step()
    found = grokking_stages(kept, x, label, learned)
    assert found.stage.tolist() == [0, 1]
    assert float(found) == math.inf
    assert float(found.train_accuracy[1]) == 1.0
    with pytest.raises(InputError, match="grokking_stages: expected a label and a mark"):
        grokking_stages(kept, x, label[:-1], learned)


@pytest.mark.truth("the same checkpoints in the order of their steps")
def test_steps_in_any_order_are_one_training():
    x, label = addition(5)
    draw = torch.Generator().manual_seed(3)
    layers = {
        s: (torch.randn(10, 6, generator=draw), torch.randn(6, 5, generator=draw))
        for s in (0, 20, 70)
    }
    learned = part(len(x), 0.6)
    found, other = (
        grokking_stages({s: layers[s] for s in order}, x, label, learned)
        for order in ((0, 20, 70), (70, 0, 20))
    )
    assert other.step.tolist() == [0, 20, 70]
    assert other.moved.tolist() == found.moved.tolist()
    assert other.stage.tolist() == found.stage.tolist()
    assert float(found.moved[0]) == 0.0 < float(found.moved[1])


def test_what_has_no_accuracy_is_refused():
    x, label = addition(5)
    first, second = torch.ones(10, 6), torch.ones(6, 5)
    layers, learned = {0: (first, second)}, part(len(x), 0.6)
    broken = {0: (first, second), 9: (first * math.nan, second)}
    for given, message in (
        ((broken, x, label, learned), "diverged"),
        ((layers, torch.where(x > 0, math.inf, x), label, learned), "finite rows"),
        ((layers, x, label, torch.arange(len(x))), "mark for each row"),
        ((layers, x, label - 1, learned), "from 0 to 4"),
        ((layers, x, label + 0.5, learned), "whole numbers"),
    ):
        with pytest.raises(InputError, match=message):
            grokking_stages(*given)
    few = grokking_stages(layers, x, label.clamp(max=3), learned)  # a class without rows
    assert few.test_accuracy.isfinite().all()
