"""Stacks of blocks: residuals, full rank, prefixes of blocks, and what is refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde import Model
from sonde.compress import BitStack, layer_grams
from sonde.core.errors import InputError, ShapeError
from sonde.data import open_inputs
from sonde.weights import Stacked, StackLinear, unpack


def drawn(n_in: int = 40, n_out: int = 24) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Linear(n_out, 9)).eval()
    x = torch.randn(200, n_in) * torch.logspace(-1, 1, n_in)
    x[:, 3] = 0.0
    return net, x


@pytest.mark.truth("residuals followed by hand in the scaled weight")
def test_each_block_is_the_best_of_its_rank_for_what_is_left():
    net, x = drawn()
    plan = BitStack(bits=20, blocks=5, rank=2).plan(net, {"calibration": x})
    change = plan.changes["0.weight"]
    assert isinstance(change, Stacked)
    assert len(change.signs) == 5
    scale = change.scale.double()
    size = x.double().square().mean(0).sqrt()
    expected = (size / size.mean()).clamp(min=1e-3)
    torch.testing.assert_close(scale, expected, rtol=2**-8, atol=0)
    left = net[0].weight.detach().double() * scale
    norms = [float(left.norm())]
    for i in range(5):
        sign = unpack(change.signs[i], 1, 40).double() * 2 - 1
        assert torch.equal(sign, torch.where(left >= 0, 1.0, -1.0).double())
        product = change.left[i].double() @ change.right[i].double()
        least = float(torch.linalg.svdvals(left.abs())[2:].square().sum())
        assert float((left.abs() - product).square().sum()) == pytest.approx(least, rel=1e-3)
        left = left - sign * product
        norms.append(float(left.norm()))
    assert all(b < a for a, b in pairwise(norms))
    rest = net[0].weight.detach().double() * scale - change.matrix() * scale
    torch.testing.assert_close(rest, left, atol=1e-9, rtol=0)


def test_full_rank_is_the_weight_after_a_block_and_rounding_is_corrected_by_the_next():
    net, x = drawn(12, 12)
    gaps = []
    for blocks in (1, 2):
        plan = BitStack(bits=99, blocks=blocks, rank=12, layers=("0",)).plan(
            net, {"calibration": x}
        )
        new = plan.fold(net)[0].values()
        reached = torch.arange(12) != 3  # an input that is always 0 has no scale
        gaps.append(float((new - net[0].weight.detach())[:, reached].abs().max()))
    assert gaps[0] < 0.01  # float16 of numbers up to 1, at inputs that are a twentieth
    assert gaps[1] < 0.02 * gaps[0]


def test_the_first_blocks_of_a_larger_stack_are_the_smaller_one():
    net, x = drawn()
    grams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    large = BitStack(bits=14, rank=2).plan(net, {"calibration": grams})
    losses = []
    for bits in (5.0, 7.5, 10.0, 14.0):
        small = BitStack(bits=bits, rank=2).plan(net, {"calibration": grams})
        new, numbers = small.fold(net), 0
        changes: dict[str, Any] = dict(small.changes)
        for name, change in changes.items():
            whole: Any = large.fold(net).get_submodule(name.removesuffix(".weight"))
            whole.use(len(change.signs))
            own: Any = new.get_submodule(name.removesuffix(".weight"))
            assert torch.equal(own.values(), whole.values())
            numbers += sum(x.numel() * x.element_size() for x in change.replaced().values())
        stored = 8 * numbers / (24 * 40 + 9 * 24)
        assert stored == pytest.approx(small.figures["bits"], abs=1e-9)
        assert bits - 4 < stored <= bits
        losses.append(small.figures["loss"])
    assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_its_folder_opens_and_uses_fewer_blocks(tmp_path):
    model = sonde.load("sonde:digits", device="cpu")
    data = open_inputs(model, "sonde:digits/train", limit=20)
    plan = BitStack(bits=4, layers=("*.mlp.*",)).plan(model, {"calibration": data})
    plan.save("sonde:digits", tmp_path / "small")
    again = sonde.load(str(tmp_path / "small"), device="cpu").module
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = plan.fold(model)(x).logits
    torch.testing.assert_close(again(x).logits, wanted)
    stacks = [part for part in again.modules() if isinstance(part, StackLinear)]
    assert len(stacks) == 8
    for part in stacks:
        part.use(1)
    assert (again(x).logits - wanted).abs().max() > 0.1
    with pytest.raises(ShapeError, match="expected 1 to"):
        stacks[0].use(99)
    with pytest.raises(InputError, match="got a packed model"):
        BitStack().plan(again, {"calibration": data})


def test_a_budget_below_one_block_names_the_least():
    net, x = drawn()
    with pytest.raises(
        InputError, match=r"at least \d\.\d\d bits \(a single block for each layer\)"
    ):
        BitStack(bits=1.5).plan(net, {"calibration": x})
    with pytest.raises(InputError, match="bits above 1, got 1"):
        BitStack(bits=1)
    with pytest.raises(InputError, match="rank of at least 1, got 0"):
        BitStack(rank=0)
    assert BitStack(bits=None).plan(net, {"calibration": x}).fold(net) is net
