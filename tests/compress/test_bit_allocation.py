"""Bits for each layer: against every allocation, a planted sensitive layer, and what is refused."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from sonde.compress import GPTQ, RTN, BitAllocation, allocate, fidelity
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


def widths_of(plan: Any) -> dict[str, int]:
    return {name: change.grid.bits for name, change in plan.changes.items()}


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
    for bits in (3, 4):
        plan = BitAllocation(bits=bits, group=8).plan(net, {"calibration": x[:150]})
        assert plan.figures["bits"] <= bits
        equal = GPTQ(bits=bits, group=8).plan(net, {"calibration": x[:150]})
        ours, theirs = (fidelity(net, p.fold(net), inputs, start=150).kl for p in (plan, equal))
        assert ours < theirs / 2
        widths = widths_of(plan)
        assert widths["main.weight"] > bits > widths["big.weight"]
    assert BitAllocation(bits=None).plan(net, {"calibration": x}).fold(net) is net


def test_widths_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="widths from 2 to 8, got"):
        BitAllocation(widths=(1, 4))
    with pytest.raises(InputError, match=r"mean bits from 3 \(the smallest width\) to 8, got 2"):
        BitAllocation(bits=2, widths=(3, 4))


class Blocks(nn.Module):
    """Residual blocks of unequal size between two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(9, 12), nn.Linear(12, 4)
        self.blocks = nn.ModuleList(Block(gain) for gain in (0.2, 2.0, 0.7, 1.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.up, self.down, self.gain = nn.Linear(12, 20), nn.Linear(20, 12), gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gain * self.down(torch.tanh(self.up(x)))


def deep() -> tuple[Any, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    net = Blocks().eval().requires_grad_(False)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=draw).sign() * torch.rand(p.shape, generator=draw)
    return net, torch.randn(90, 9, generator=draw)


def scores_of(net: nn.Module, x: torch.Tensor, score: Any) -> dict[str, float]:
    rule = BitAllocation(bits=3, group=6, widths=(2, 4), score=score)
    figures = rule.plan(net, {"calibration": x}).figures
    return {n.removeprefix("score."): v for n, v in figures.items() if n.startswith("score.")}


@pytest.mark.truth("torch's cosine, and singular values of the product of orthonormal bases")
def test_scores_of_blocks():
    net, x = deep()
    moved, alike = scores_of(net, x, "lim"), scores_of(net, x, "cca")
    state = net.first(x).double()
    for i, block in enumerate(net.blocks.double()):
        after = block(state)
        cosine = float(torch.cosine_similarity(state, after).mean())
        assert moved[f"blocks.{i}.up"] == pytest.approx(-cosine, abs=1e-5)
        one, other = (v - v.mean(0) for v in (state, after))
        parts = [torch.linalg.svd(v, full_matrices=False) for v in (one, other)]
        q, r = (u[:, size > 1e-4 * size[0]] for u, size, _ in parts)  # nine directions at first
        want = float(torch.linalg.svdvals(q.T @ r).mean())
        assert alike[f"blocks.{i}.down"] == pytest.approx(-want, abs=1e-4)
        state = after
    assert moved["head"] == alike["first"] == float("inf")


@pytest.mark.truth("numpy on the weights; answers of a net without a tenth of its weights")
def test_scores_of_layers():
    net, x = deep()
    far, pruned = scores_of(net, x, "zd"), scores_of(net, x, "prune")
    log_p = net(x[:16]).log_softmax(1)
    for name in ("blocks.1.up", "head"):
        w = net.get_submodule(name).weight
        z = (w.double().numpy() - w.double().numpy().mean()) / w.double().numpy().std()
        assert far[name] == pytest.approx(-float((z > 1).mean()))
        other = deep()[0]
        flat = other.get_submodule(name).weight.view(-1)
        flat[flat.abs().argsort()[: round(0.1 * len(flat))]] = 0.0
        log_q = other(x[:16]).log_softmax(1)
        want = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
        assert pruned[name] == pytest.approx(want, rel=1e-3)


@pytest.mark.slow
@pytest.mark.truth("the gradient of each example and each answer by torch.func")
def test_the_score_of_gradients_and_weights():
    net = deep()[0]
    x = torch.randn(1_500, 9, generator=torch.Generator().manual_seed(8))
    name = "blocks.0.down.weight"
    weight = net.get_parameter(name).detach()

    def log_p(w: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return functional_call(net, {name: w}, (row[None],)).log_softmax(1)[0]

    slopes = vmap(jacrev(log_p), (None, 0))(weight, x)
    square = (net(x).softmax(1)[:, :, None, None] * slopes.square()).sum(1).mean(0)
    gap = RTN(2, 6).plan(net).changes[name].of(weight) - weight
    want = float((square.sqrt() * gap.abs()).sum())
    # One drawn answer for each row stands for the mean over answers.
    assert scores_of(net, x, "taylor")["blocks.0.down"] == pytest.approx(want, rel=0.1)


@pytest.mark.truth("the layers sorted by hand")
def test_the_first_layers_in_order_get_the_largest_width():
    net, x = deep()
    rule = BitAllocation(bits=3.1, group=6, widths=(2, 3, 4), score="lim")
    plan = rule.plan(net, {"calibration": x})
    widths = widths_of(plan)
    scores = {n.removeprefix("score."): v for n, v in plan.figures.items() if n != "bits"}
    sizes = {name: net.get_submodule(name).weight.numel() for name in scores}
    left = 1.1 * sum(sizes.values())
    for name in sorted(scores, key=lambda n: -scores[n]):
        left -= 2 * sizes[name]
        assert widths[f"{name}.weight"] == (4 if left >= 0 else 2)
        left = left if left >= 0 else -float("inf")
    assert plan.figures["bits"] <= 3.1
