"""Clips of neighbouring layers: runs by enumeration, errors by forwards of the folded model."""

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import nn

from models import llama
from sonde import Model
from sonde.compress import BlockRounding, partition
from sonde.compress._layers import Weighted
from sonde.compress.block_rounding import SHARES
from sonde.core.errors import InputError


@pytest.mark.truth("every way to cut the stages")
@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_runs_cost_least_of_all_ways_to_cut(n):
    draw = torch.Generator().manual_seed(n)
    entropies = (6 * torch.rand(n - 1, generator=draw)).tolist()
    for most, price in ((1, 0.5), (3, 0.2), (4, 0.9)):
        found = partition(entropies, most, price)
        costs: dict[tuple[bool, ...], float] = {}
        for cut in product([False, True], repeat=n - 1):
            ends = [0, *[i + 1 for i in range(n - 1) if cut[i]], n]
            sizes = [b - a for a, b in pairwise(ends)]
            if max(sizes) <= most:
                inside = sum(e for e, is_cut in zip(entropies, cut, strict=True) if not is_cut)
                costs[cut] = price * sum(2**size for size in sizes) - inside
        starts = {run.start for run in found}
        chosen = tuple(i + 1 in starts for i in range(n - 1))
        assert costs[chosen] == pytest.approx(min(costs.values()))
        assert [i for run in found for i in run] == list(range(n))


def chain() -> Any:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 6), nn.ReLU(),
                         nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()  # fmt: skip


def rows(n_in: int = 7, seed: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(32, n_in, generator=draw).double() * torch.linspace(0.3, 2, n_in).double()


@pytest.mark.truth("all 49 pairs, folded into the model")
def test_a_run_of_two_takes_the_best_of_all_pairs():
    net, x = chain(), rows()
    rule = BlockRounding(bits=2, group=5, cuts=(1, 3))
    plan = rule.plan(net, {"calibration": x})
    with torch.no_grad():
        start = net[:2](x)
        wanted, errors = net[2:5](start), dict[tuple[int, int], float]()
        layers = [Weighted(name, net[int(name)]) for name in "24"]
        each = [[rule._clipped(layer, share) for share in SHARES] for layer in layers]
        for pair in product(range(7), range(7)):
            first, last = (own[i].matrix() for own, i in zip(each, pair, strict=True))
            hidden = (start @ first.T + net[2].bias).relu()
            gap = hidden @ last.T + net[4].bias - wanted
            errors[pair] = float(gap.square().sum() / wanted.square().sum())
    found: Any = [plan.changes["2.weight"], plan.changes["4.weight"]]
    chosen: Any = tuple(
        next(i for i, one in enumerate(own) if torch.equal(one.codes, got.codes)
             and torch.equal(one.scale, got.scale))
        for own, got in zip(each, found, strict=True)
    )  # fmt: skip
    assert errors[chosen] == min(errors.values())
    assert plan.figures["gain.1"] > 0
    assert plan.figures["gain.0"] == plan.figures["gain.3"] == 0


@pytest.mark.truth("every other clip of one layer of a run of three, folded into the model")
def test_no_other_clip_of_one_layer_of_a_run_of_three_is_better():
    net, x = chain(), rows()
    rule = BlockRounding(bits=2, group=5, cuts=(1,))
    plan = rule.plan(net, {"calibration": x})
    wanted = net(x)

    def error(weights: dict[str, torch.Tensor]) -> float:
        named = {f"{name}.weight": w for name, w in weights.items()}
        gap = torch.func.functional_call(net, named, x) - wanted
        return float((gap.square().sum() / wanted.square().sum()).detach())

    found: Any = {name: plan.changes[f"{name}.weight"] for name in "246"}
    own = {name: change.matrix() for name, change in found.items()}
    each = {name: [rule._clipped(Weighted(name, net[int(name)]), share).matrix()
                   for share in SHARES] for name in own}  # fmt: skip
    least = error(own)
    for name, others in each.items():
        assert all(error({**own, name: other}) >= least - 1e-9 for other in others)
    assert plan.figures["gain.1"] > 0


def test_layers_that_one_tensor_feeds_are_a_stage_and_what_is_apart_does_not_depend():
    net = llama()
    model = Model(net, config=net.config, task="causal")
    ids = [torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]), torch.tensor([8, 9, 7, 9, 3, 2])]
    plan = BlockRounding(bits=2, most=1).plan(model, {"calibration": ids})
    names = [key for key in plan.figures if key.startswith("entropy.")]
    assert len(names) == 3 * 4  # of 13 stages: q k v, o, gate up, down; the head
    assert plan.figures["runs"] == 13

    class Apart(nn.Module):
        """Two layers that read one another's nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x[:, :4]) + self.two(x[:, 4:])

    torch.manual_seed(0)
    apart = BlockRounding(bits=2, cuts=()).plan(Apart().double(), {"calibration": rows()})
    assert apart.figures["gain.0"] == 0


def test_what_cannot_be_is_refused():
    net, x = chain(), rows()
    assert BlockRounding(bits=None).plan(net, {"calibration": x}).fold(net) is net
    with pytest.raises(InputError, match="cuts from 1 to 3, got 4: the model has 4 stages"):
        BlockRounding(cuts=(1, 4)).plan(net, {"calibration": x})
    with pytest.raises(InputError, match="cuts from 1 to 3, got 0"):
        BlockRounding(cuts=(0, 2)).plan(net, {"calibration": x})
    with pytest.raises(InputError, match="most of at least 1, got 0"):
        BlockRounding(most=0)
