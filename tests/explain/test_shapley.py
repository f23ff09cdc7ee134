"""Attribution by taking parts away: closed forms, axioms, brute force over sets."""

from itertools import permutations

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.explain import Baseline, Objective, Occlusion, Shapley

ZERO = Baseline("zero")


class Game(nn.Module):
    """``x0 x1 + 2 x2 - x3 max(x4, 0)``; the sixth entry does nothing."""

    def forward(self, x):
        made = x[:, 0] * x[:, 1] + 2 * x[:, 2] - x[:, 3] * x[:, 4].clamp(min=0)
        return made[:, None]


def rows(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("brute force over all orders of six parts")
def test_every_set_gives_what_every_order_gives():
    x = rows(2, 6)
    found = Shapley(ZERO).explain(Game(), x)
    expected = torch.zeros(2, 6, dtype=torch.float64)
    orders = list(permutations(range(6)))
    for order in orders:
        held = torch.zeros(2, 6, dtype=torch.float64)
        before = Game()(held)[:, 0]
        for part in order:
            held[:, part] = x[:, part]
            after = Game()(held)[:, 0]
            expected[:, part] += after - before
            before = after
    torch.testing.assert_close(found.value, expected / len(orders))
    torch.testing.assert_close(found.gap, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    value = torch.as_tensor(found.value)
    torch.testing.assert_close(value[:, 0], value[:, 1])
    assert float(value[:, 5].abs().max()) < 1e-15


@pytest.mark.truth("closed form: w (x - b) of a linear model, by any order")
def test_random_orders_of_many_parts_add_up():
    torch.manual_seed(0)
    net, x = nn.Linear(20, 2).double(), rows(3, 20)
    base = rows(1, 20, seed=5)[0]
    method = Shapley(Baseline("values", values=base), n_orders=2)
    found = method.explain(net, x, objective=Objective(target=1))
    torch.testing.assert_close(found.value, ((x - base) * net.weight[1]).detach())
    assert found.flags == ()
    single = Occlusion(Baseline("values", values=base)).explain(
        net, x, objective=Objective(target=1)
    )
    torch.testing.assert_close(single.value, found.value)


def test_groups_of_pixels_are_parts():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double()
    x = rows(2, 32).reshape(2, 2, 4, 4)
    groups = torch.arange(16).reshape(4, 4) // 8
    found = Shapley(ZERO, groups.flatten()).explain(net, x, objective=Objective(target=0))
    part = (net[1].weight[0].detach().reshape(2, 4, 4) * x).sum(1)  # type: ignore[operator]
    torch.testing.assert_close(found.by_place[:, :2].sum((1, 2)), part[:, :2].sum((1, 2)))
    torch.testing.assert_close(found.by_place[:, 0, 0], part[:, :2].sum((1, 2)) / 8)
    with pytest.raises(InputError, match="each of 16 positions, got 3"):
        Shapley(ZERO, torch.tensor([0, 1, 1])).explain(net, x)
    with pytest.raises(InputError, match="n_orders of at least 1, got 0"):
        Shapley(n_orders=0)
