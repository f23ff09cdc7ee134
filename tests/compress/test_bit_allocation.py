"""Bits for each layer: against every allocation, a planted sensitive layer, and what is refused."""

from itertools import product

import pytest
import torch
from torch import nn

from sonde.compress import GPTQ, BitAllocation, allocate, fidelity
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import open_inputs


@pytest.mark.essential
@pytest.mark.truth("every one of 4^6 allocations")
@pytest.mark.parametrize("scale", [1, 7, 31_337])
def test_the_programme_finds_the_best_of_all_allocations(scale):
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        costs = torch.rand(6, 4, generator=draw).sort(descending=True).values
        sizes = torch.randint(1, 40, (6, 4), generator=draw).sort().values * scale
        budget = int(sizes[:, 1].sum()) + 3 * scale
        every = {
            pick: sum(float(costs[i, k]) for i, k in enumerate(pick))
            for pick in product(range(4), repeat=6)
            if sum(int(sizes[i, k]) for i, k in enumerate(pick)) <= budget
        }
        found = allocate(costs, sizes, budget)
        assert sum(int(sizes[i, k]) for i, k in enumerate(found)) <= budget
        assert sum(float(costs[i, k]) for i, k in enumerate(found)) == pytest.approx(
            min(every.values())
        )


def test_large_budgets_are_kept_and_small_ones_refused():
    draw = torch.Generator().manual_seed(1)
    sizes = torch.randint(10**6, 10**8, (40, 3), generator=draw).sort().values
    costs = torch.rand(40, 3, generator=draw).sort(descending=True).values
    budget = int(sizes.amin(1).sum()) + 5
    assert allocate(costs, sizes, budget) == [0] * 40
    found = allocate(costs, sizes, 10 * budget)
    assert sum(int(sizes[i, k]) for i, k in enumerate(found)) <= 10 * budget
    with pytest.raises(InputError, match=f"a budget of at least {budget - 5:,}"):
        allocate(costs, sizes, budget - 6)


class Branches(nn.Module):
    """A small layer that decides, and two large layers that hardly matter."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.big, self.tail = nn.Linear(24, 5), nn.Linear(24, 64), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.main(x) + 0.05 * self.tail(torch.tanh(self.big(x)))


def planted() -> tuple[nn.Module, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    net = Branches().eval().requires_grad_(False)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=draw) / 3
    return net, torch.randn(300, 24, generator=draw)


@pytest.mark.essential
@pytest.mark.truth("the divergence of uniform widths of the same bytes")
def test_allocated_bits_cost_less_than_equal_ones():
    net, x = planted()
    inputs = open_inputs(Model(net), x)
    for bits, by in ((3, "kl"), (4, "kl")):
        plan = BitAllocation(bits=bits, group=8, by=by).plan(net, {"calibration": x[:150]})
        assert plan.figures["bits"] <= bits
        equal = GPTQ(bits=bits, group=8).plan(net, {"calibration": x[:150]})
        ours, theirs = (fidelity(net, p.fold(net), inputs, start=150).kl for p in (plan, equal))
        assert ours < theirs / 2
        widths = {name: change.grid.bits for name, change in plan.changes.items()}
        assert widths["main.weight"] > bits > widths["big.weight"]
    assert BitAllocation(bits=None).plan(net, {"calibration": x}).fold(net) is net


def test_widths_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="widths from 2 to 8, got"):
        BitAllocation(widths=(1, 4))
    with pytest.raises(InputError, match="mean bits from 3, the smallest width, to 8, got 2"):
        BitAllocation(bits=2, widths=(3, 4))
