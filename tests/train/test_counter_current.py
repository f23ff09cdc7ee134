"""Local learning: no gradient leaves its level, the least-squares solution, digits learned."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import models
from sonde.core import InputError
from sonde.train import CounterCurrent


def net(*widths: int) -> list[Any]:
    torch.manual_seed(2)
    ends = list(pairwise(widths))
    inner = [nn.Sequential(nn.Linear(a, b), nn.ELU()) for a, b in ends[:-1]]
    return [*inner, nn.Linear(*ends[-1])]


@pytest.mark.truth("autograd: which parameters a loss has gradients for")
def test_the_loss_of_a_level_reaches_its_own_part_and_feedback_alone():
    parts = [nn.Flatten(), models.cnn().conv1, *net(8 * 9 * 7, 5, 3)]
    parts = [nn.Sequential(nn.Unflatten(1, (1, 9)), parts[1], nn.ReLU(), nn.Flatten()), *parts[2:]]
    local = CounterCurrent(parts, [8 * 9 * 7, 5], 3).double()
    x, label = torch.randn(6, 9, 7).double(), torch.tensor([0, 1, 2, 2, 1, 0])
    own = [[*parts[0].parameters(), *local.feedback[1].parameters()],
           [*parts[1].parameters(), *local.feedback[0].parameters()],
           [*parts[2].parameters()]]  # fmt: skip
    for level, value in enumerate(local.levels(x, label)):
        every = list(local.parameters())
        found = torch.autograd.grad(value, every, allow_unused=True)
        reached = {id(p) for p, g in zip(every, found, strict=True) if g is not None}
        assert reached == {id(p) for p in own[level]}
        assert all(bool(g.any()) for g in found if g is not None)


@pytest.mark.truth("numpy.linalg.lstsq on the Kronecker product, for a feedback that is fixed")
def test_a_linear_level_has_its_least_squares_solution():
    layer = nn.Linear(3, 4, bias=False).double()
    local = CounterCurrent([layer, nn.Linear(4, 2).double()], [4], 2, how="gram").double()
    x, label = torch.randn(7, 3).double(), torch.tensor([0, 1, 1, 0, 1, 1, 0])
    with torch.no_grad():
        b = nn.functional.elu(local.feedback[0](torch.eye(2).double()[label]))
    alike = (label[:, None] == label).double()
    design = np.kron(x.numpy(), b.numpy())  # (a b')_ij is a sum over weights (in, out)
    best = np.linalg.lstsq(design, 4 * alike.numpy().ravel(), rcond=None)[0].reshape(3, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(best).T)
    value = local.levels(x, label)[0]
    residual = (design @ best.ravel() / 4 - alike.numpy().ravel()) ** 2
    assert value.item() == pytest.approx(residual.mean(), rel=1e-9)
    value.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() < 1e-12


@pytest.mark.slow
def test_it_learns_digits_and_centred_gradients_have_no_mean():
    data: Any = load_digits()
    x, y = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    parts = net(64, 48, 32, 10)
    local = CounterCurrent(parts, [48, 32], 10)
    adam = torch.optim.Adam(local.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = torch.randint(0, 1200, (128,), generator=draw)
        adam.zero_grad()
        local(x[rows], y[rows]).backward()
        local.centre()
        adam.step()
    grad = parts[0][0].weight.grad
    assert grad.mean(1).abs().max() < 1e-7 < grad.abs().max()
    with torch.no_grad():
        found = nn.Sequential(*parts)(x[1200:]).argmax(1)
    assert (found == y[1200:]).float().mean() > 0.85


def test_widths_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="a width for each but the last"):
        CounterCurrent(net(4, 5, 3), [5, 3], 3)
    with pytest.raises(InputError, match="expected width 6 at level 0, got 5"):
        CounterCurrent(net(4, 5, 3), [6], 3)(torch.ones(2, 4), torch.tensor([0, 1]))
