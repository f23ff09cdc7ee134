"""Mixed examples: printed losses, a loop over rows, and what must not be mixed."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sonde.core import StateError
from sonde.train import Mixup


def mixed(share, order, **parameters):
    made = Mixup(**parameters)
    made.change(torch.zeros(len(order), 1))
    made.drawn.put((torch.tensor(share), torch.tensor(order)))
    return made


@pytest.mark.truth("closed form of three logits")
def test_printed_losses():
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 2, dtype=torch.float64)
    label = torch.tensor([0, 1])
    share = [0.7, 0.3]
    plain = float(mixed(share, [1, 0])(logits, label))
    assert plain == pytest.approx(0.707606, abs=1e-6)
    found = float(mixed(share, [1, 0], decoupled=True)(logits, label))
    assert found == pytest.approx(plain + 0.1 * (0.126928 + 0.313262), abs=1e-6)
    whole = mixed([1.0, 1.0], [1, 0], decoupled=True)(logits, label)
    assert float(whole) == pytest.approx(float(cross_entropy(logits, label)))


@pytest.mark.truth("a loop over rows")
def test_each_row_has_its_own_share():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=draw, dtype=torch.float64)
    label = torch.tensor([0, 1, 1, 3, 2, 0, 1])
    loss = Mixup(0.4, decoupled=True, eta=0.7, per="row", unmixed=0.3, seed=5)
    x = torch.randn(7, 2, 3, generator=draw, dtype=torch.float64)
    change = loss.change(x)
    share, order = loss.share.tolist(), loss.order.tolist()
    assert share[:2] == [1.0, 1.0]
    assert len(set(share)) == 6
    total = 0.0
    for i in range(7):
        expected = share[i] * x[i] + (1 - share[i]) * x[order[i]]
        torch.testing.assert_close(change[i], expected)
        a, b = int(label[i]), int(label[order[i]])
        s = logits[i].tolist()
        norm = math.log(sum(math.exp(v) for v in s))
        total += share[i] * (norm - s[a]) + (1 - share[i]) * (norm - s[b])
        if a != b and share[i] < 1:
            for c, gone in ((a, b), (b, a)):
                rest = math.log(sum(math.exp(v) for j, v in enumerate(s) if j != gone))
                total += 0.7 * (rest - s[c])
    assert float(loss(logits, label)) == pytest.approx(total / 7, rel=1e-10)


@torch.no_grad()
def test_a_linear_map_is_smooth_and_a_teacher_that_agrees_costs_nothing():
    x, loss = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), Mixup()
    linear, curved = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    inside = loss.change(x)
    assert float(loss.smoothness(linear(inside), linear(x))) < 1e-10
    assert float(loss.smoothness(curved(inside), curved(x))) > 1e-4
    assert float(loss(linear(x), teacher=linear(x) + 2.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.truth("closed form of two logits")
def test_spread_divides_each_row_by_its_standard_deviation():
    loss, teacher = Mixup(temperature="spread"), torch.tensor([[3.0, 1.0], [10.0, 40.0]])
    # two logits have the spread |a - b| / 2, so that all rows become (1, -1) or (-1, 1)
    assert float(loss(7.0 * teacher + 5.0, teacher=teacher)) == pytest.approx(0, abs=1e-6)
    assert float(loss(-teacher, teacher=teacher)) == pytest.approx(2 * math.tanh(1.0), rel=1e-5)
    assert torch.isfinite(loss(torch.zeros(2, 2, requires_grad=True), teacher=teacher))


def test_the_loss_needs_the_change_of_the_same_rows():
    loss = Mixup()
    loss.change(torch.zeros(4, 1))
    with pytest.raises(StateError, match="on the same 5 rows"):
        loss(torch.zeros(5, 2), torch.zeros(5, dtype=torch.int64))
