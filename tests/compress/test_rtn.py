"""Rounding to the nearest: bounds, exact cases, edges, and what is refused."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sonde import Model, compress
from sonde.compress import RTN, QuantLinear, SignQuant, _grid, layer_grams
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights import Examples, Rewrite


def weights(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net: Any = nn.Sequential(nn.Linear(37, 12), nn.ReLU(), nn.Linear(12, 5, bias=False))
    net[0].weight.data[3] = 0.0
    net[0].weight.data[4, :8] = 2.5
    return net


@pytest.mark.truth("the grid searched entry by entry")
@pytest.mark.parametrize("symmetry", ["asymmetric", "symmetric"])
def test_each_weight_is_the_nearest_of_its_group(symmetry):
    net = weights()
    new = RTN(bits=3, group=16, symmetry=symmetry).plan(net).fold(net)
    for i in (0, 2):
        layer, w = new[i], net[i].weight.detach().double()
        assert isinstance(layer, QuantLinear)
        scale, offset = (x.view(torch.bfloat16).double() for x in (layer.scale, layer.offset))
        found, codes = layer.values(torch.float64), torch.arange(8.0).double() - 4
        for row in range(len(w)):
            for j in range(w.shape[1]):
                points = codes * scale[row, j // 16] + offset[row, j // 16]
                nearest = points[(points - w[row, j]).abs().argmin()]
                assert abs(found[row, j] - w[row, j]) <= abs(nearest - w[row, j]) + 1e-12
    assert bool((new[0].values()[3] == 0).all())


class LargestFloat64(TorchDispatchMode):
    """Note the largest number of float64 entries that an operation returns."""

    n_entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                self.n_entries = max(self.n_entries, x.numel())
        return result


@pytest.mark.parametrize("clip", [None, "mse"])
def test_a_large_matrix_is_rounded_in_blocks_of_rows(clip, monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 300, bias=False), nn.Embedding(200, 40)).bfloat16()
    method = RTN(bits=3, group=16, clip=clip, layers=("*",))
    whole = method.plan(net).changes
    monkeypatch.setattr(_grid, "BLOCK", 1000)
    with LargestFloat64() as largest:
        blocks = method.plan(net).changes
    assert 1000 < largest.n_entries <= 25 * 48  # a block of 25 rows, padded to whole groups
    for name, change in whole.items():
        for part, values in change.replaced().items():
            assert torch.equal(blocks[name].replaced()[part], values), (name, part)


def test_rounding_again_changes_nothing_and_no_bits_is_the_same_model():
    net = weights()
    new = RTN(bits=8, group=37).plan(net).fold(net)
    assert (new[0].values() - net[0].weight).abs().max() < net[0].weight.abs().max() / 100
    assert RTN(bits=None).plan(net).fold(net) is net


@pytest.mark.truth("the error of each narrower grid, group by group")
@pytest.mark.parametrize("clip", ["mse", "inputs"])
@pytest.mark.parametrize("symmetry", ["asymmetric", "symmetric"])
def test_clipping_takes_the_narrower_grid_with_the_smallest_error(symmetry, clip):
    net: Any = nn.Sequential(nn.Linear(37, 12, bias=False))
    random = torch.Generator().manual_seed(1)
    net[0].weight.data = torch.randn(12, 37, generator=random) ** 3
    x = torch.randn(50, 37, generator=random) * torch.linspace(0.1, 3, 37) + 0.5
    square = x.double().square().mean(0) if clip == "inputs" else torch.ones(37).double()
    new = (
        RTN(bits=3, group=16, symmetry=symmetry, clip=clip).plan(net, {"calibration": x}).fold(net)
    )
    plain = RTN(bits=3, group=16, symmetry=symmetry).plan(net).fold(net)
    w, steps = net[0].weight.detach().double(), torch.arange(8.0).double()
    gains = 0
    for row in range(12):
        for start in (0, 16, 32):
            part, own = w[row, start : start + 16], square[start : start + 16]
            errors = []
            for i in range(21):
                low, high = part.min().clamp(max=0.0), part.max().clamp(min=0.0)
                if symmetry == "symmetric":
                    high = torch.maximum(high, -low)
                    low = -high * 4 / 3
                scale = (1 - i / 40) * (high - low) / 7
                offset = (1 - i / 40) * low + 4 * scale
                points = (steps - 4) * scale.bfloat16().double() + offset.bfloat16().double()
                errors.append(float(((part[:, None] - points).square().amin(1) * own).sum()))
            values = (m[0].values(torch.float64)[row, start : start + 16] for m in (new, plain))
            found, other = (float(((v - part).square() * own).sum()) for v in values)
            assert found <= other
            assert found == pytest.approx(min(errors), rel=1e-3)
            gains += found < 0.9 * other
    assert gains > 5


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(InputError, match="expected whole bits from 2 to 8, or None, got 9"):
        RTN(bits=9)
    with pytest.raises(InputError, match="a group of 1 entry or more, or 0 for whole rows, got -1"):
        RTN(group=-1)
    with pytest.raises(InputError, match="expected linear layers, got none"):
        RTN().plan(nn.Sequential(nn.Conv1d(2, 3, 2)))
    net = weights()
    with pytest.raises(InputError, match="got a packed model"):
        RTN().plan(RTN().plan(net).fold(net))
    net[0].weight.data[1, 1] = float("inf")
    with pytest.raises(InputError, match=r"NaN or infinity in 0\.weight"):
        RTN().plan(net)
    tied = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    tied["head"].weight = tied["embed"].weight
    with pytest.raises(InputError, match="head and embed are a single weight"):
        SignQuant(layers=("head",)).plan(tied)
    assert set(RTN(layers=("head",)).plan(tied).changes) == {"embed.weight"}, "both sides alike"


EXPORTS = (getattr(compress, name) for name in compress.__all__)
RULES = [
    rule for rule in EXPORTS
    if inspect.isclass(rule) and issubclass(rule, Rewrite)
    and inspect.signature(rule).parameters.keys() >= {"bits", "group"}
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_group_of_0_is_a_whole_row_or_refused(rule):
    """Two layers of different width: a group of 0 is the row of each."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(20, 6)
    model, bits = Model(net.eval()), 2
    if rule in (compress.BitAllocation, SignQuant):
        with pytest.raises(InputError, match="group of at least 1, got 0"):
            rule(group=0)
        return
    outputs = list[torch.Tensor]()
    for group in (0, 8):  # a group longer than a row is the row
        need = rule(bits=bits, group=group).reads().get("calibration")
        grams = layer_grams(model, open_inputs(model, x), progress=False)
        given = {} if need is None else {"calibration": x if isinstance(need, Examples) else grams}
        outputs.append(rule(bits=bits, group=group).plan(model, given).fold(model)(x))
    assert torch.equal(*outputs)
