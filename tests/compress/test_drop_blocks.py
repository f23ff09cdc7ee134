"""Blocks left out: against states by hand, blocks that do nothing, and linear ones."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from edit.fact_model import tiny
from models import Residual
from sonde.compress import DropBlocks, fidelity
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights import LinearBlock, RewritePlan


class Pairs(Residual):
    """Blocks that hand on a second tensor."""

    def __init__(self, n_in: int, n_blocks: int) -> None:
        super().__init__(n_in, n_blocks)
        self.blocks = nn.ModuleList([Hands(6) for _ in range(n_blocks)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        more = torch.ones_like(x)
        for block in self.blocks:
            x, more = block(x, more)
        return self.last(x + more)


class Hands(nn.Module):
    """Doubles the second tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, more: torch.Tensor) -> Any:
        return x + self.map(x), 2 * more


def net(n_blocks: int = 5) -> Any:
    torch.manual_seed(0)
    return Residual(6, n_blocks).double().eval()


def rows(seed: int = 1, n: int = 40) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    found = [model.first(x)]
    for block in model.blocks:
        found.append(block(found[-1]))
    return [one.detach() for one in found]


@pytest.mark.truth("cosines of states that were computed by hand")
def test_blocks_and_runs_are_chosen_by_the_states_at_their_ends():
    model, x = net(), rows()
    model.blocks[1].scale, model.blocks[3].scale = 0.02, -0.1
    found = states(model, x)
    cosine = nn.functional.cosine_similarity
    each = [float(1 - cosine(a, b).mean()) for a, b in pairwise(found)]
    plan = DropBlocks(remove=0.4).plan(model, {"calibration": x})
    told = [plan.figures[f"influence.{i}"] for i in range(5)]
    assert told == pytest.approx(each, rel=1e-9)
    two = sorted(range(5), key=each.__getitem__)[:2]
    assert plan.blocks["blocks"] == tuple(i for i in range(5) if i not in two)
    angles = [float(cosine(found[i], found[i + 3]).arccos().mean()) / math.pi for i in range(3)]
    run = DropBlocks(blocks=2, how="contiguous").plan(model, {"calibration": x})
    told = [run.figures[f"influence.{i}"] for i in range(3)]
    assert told == pytest.approx(angles, rel=1e-9)
    first = angles.index(min(angles))
    assert run.blocks["blocks"] == tuple(i for i in range(5) if not first <= i < first + 3)
    gone = run.fold(model)
    kept = [model.blocks[i] for i in run.blocks["blocks"]]
    by_hand = model.last(kept[1](kept[0](model.first(x))))
    torch.testing.assert_close(gone(x), by_hand)


class Maps(nn.Module):
    """Convolutions in a row that keep the shape of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


@pytest.mark.truth("cosines over channels at each place of a map, in a loop")
def test_the_rows_of_a_map_are_its_places():
    torch.manual_seed(3)
    model, x = Maps().double().eval(), torch.randn(2, 3, 4, 5).double()
    plan = DropBlocks(blocks=2).plan(model, {"calibration": x})
    for i, block in enumerate(model.blocks):
        y = block(x).detach()
        turned = [
            1 - float(nn.functional.cosine_similarity(x[n, :, h, w], y[n, :, h, w], dim=0))
            for n in range(2) for h in range(4) for w in range(5)
        ]  # fmt: skip
        assert plan.figures[f"influence.{i}"] == pytest.approx(sum(turned) / 40, rel=1e-9)
        x = y


def test_a_block_that_does_nothing_goes_first_and_nothing_changes():
    model, x = net(), rows()
    model.blocks[2].scale = 0.0
    plan = DropBlocks(blocks=4).plan(model, {"calibration": x})
    assert plan.figures["influence.2"] == 0.0
    assert torch.equal(plan.fold(model)(x), model(x))


def test_linear_blocks_are_replaced_exactly():
    model, x = net(), rows(n=400)
    linear: list[Any] = [nn.Linear(6, 6).double() for _ in range(2)]
    for i, one in zip((1, 2), linear, strict=True):
        one.weight.data = torch.eye(6) + 0.02 * one.weight.data
        one.bias.data *= 0.02
        model.blocks[i] = nn.Sequential(one)
    rule = DropBlocks(blocks=3, replace="linear", ridge=1e-12)
    plan = rule.plan(model, {"calibration": x})
    assert plan.blocks["blocks"] == (0, -1, 3, 4)
    new, other = plan.fold(model), rows(2)
    assert isinstance(new.blocks[1], LinearBlock)
    expected = linear[1].weight.double() @ linear[0].weight.double()
    torch.testing.assert_close(new.blocks[1].weight.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(new(other), model(other), atol=1e-5, rtol=0)
    cut = DropBlocks(blocks=3).plan(model, {"calibration": x}).fold(model)
    assert (cut(other) - model(other)).abs().max() > 1e-3


@pytest.mark.slow
def test_padding_does_not_count():
    model, texts = tiny(), ["tom likes tea", "ann", "joe sits"]
    rule = DropBlocks(blocks=1)
    both = rule.plan(model, {"calibration": texts}).figures
    alone = [rule.plan(model, {"calibration": [text]}).figures for text in texts]
    for i in range(2):
        name = f"influence.{i}"
        total = sum(len(text) * one[name] for text, one in zip(texts, alone, strict=True))
        assert both[name] == pytest.approx(total / sum(map(len, texts)), rel=1e-4)


@pytest.mark.essential
@pytest.mark.truth("every block left out")
def test_the_chosen_block_is_no_worse_than_most():
    model = sonde.load("sonde:digits", device="cpu")
    data = open_inputs(model, "sonde:digits/train", limit=80)
    ((listed, kept),) = DropBlocks(blocks=3).plan(model, {"calibration": data}).blocks.items()
    held, costs = open_inputs(model, "sonde:digits/test", limit=80), dict[int, float]()
    for gone in range(4):
        left = [i for i in range(4) if i != gone]
        plan = RewritePlan.shaped(model, {}, blocks={listed: left})
        costs[gone] = fidelity(model, plan.fold(model), held).kl
    (chosen,) = {*costs} - {*kept}
    print(f"regret {costs[chosen] - min(costs.values()):.3g} nats of {costs}")
    assert sorted(costs, key=costs.__getitem__).index(chosen) < 2
    assert max(costs.values()) > 2 * costs[chosen]


@pytest.mark.parametrize("replace", [None, "linear"])
def test_the_folder_of_a_smaller_model_opens(tmp_path, replace):
    model = sonde.load("sonde:digits", device="cpu")
    data = open_inputs(model, "sonde:digits/train", limit=64)
    plan = DropBlocks(blocks=3, replace=replace).plan(model, {"calibration": data})
    plan.save(model, tmp_path / "small")
    told = json.loads((tmp_path / "small" / "config.json").read_text())
    assert told["num_hidden_layers"] == (3 if replace is None else 4)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    again = sonde.load(str(tmp_path / "small"), device="cpu").module
    assert torch.equal(again(x).logits, plan.fold(model)(x).logits)


def test_what_cannot_be_left_out_is_refused():
    model, x = net(), rows()
    assert DropBlocks(blocks=5).plan(model, {"calibration": x}).fold(model) is model
    with pytest.raises(InputError, match="1 to 5 of the 5 blocks in blocks to stay, got 6"):
        DropBlocks(blocks=6).plan(model, {"calibration": x})
    with pytest.raises(InputError, match="blocks of at least 1, got 0"):
        DropBlocks(blocks=0)
    with pytest.raises(InputError, match="a model with a list of blocks, got Linear"):
        DropBlocks().plan(nn.Linear(6, 2), {"calibration": x.float()})
    with pytest.raises(
        InputError, match="40 examples of 40 in 'calibration' have numbers that are not"
    ):
        DropBlocks().plan(model, {"calibration": x * math.nan})
    pairs = Pairs(6, 3).double()
    with pytest.raises(
        InputError, match="Pairs does not run with a linear map in place of these blocks"
    ):
        DropBlocks(blocks=2, replace="linear").plan(pairs, {"calibration": x})
