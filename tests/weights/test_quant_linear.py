"""Packed layers: what they multiply by, which way they take, gradients, types, copies."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sonde.core.errors import ShapeError, StateError
from sonde.weights import Grid, Quantised, QuantLinear, RewritePlan, kernels, pack
from sonde.weights.quant_linear import WAYS, timed


def packed(n_out: int = 48, n_in: int = 72, bits: int = 4, group: int = 32) -> tuple[Any, Any]:
    """Return a linear net and its packed twin; the last group of a row is short."""
    draw = torch.Generator().manual_seed(0)
    grid = Grid(bits, group)
    shape = (n_out, grid.n_groups(n_in))
    codes = torch.randint(0, 2**bits, (n_out, n_in), generator=draw)
    scale = torch.rand(shape, generator=draw).bfloat16() / 10 + 0.01
    offset = torch.randn(shape, generator=draw).bfloat16() / 10
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU())
    change = Quantised(pack(codes, bits), scale, offset, grid, (n_out, n_in))
    new = RewritePlan.of(net, {"0.weight": change}).fold(net)
    wanted = torch.empty(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        for j in range(n_in):
            k = j // group
            middle = int(codes[i, j]) - 2 ** (bits - 1)
            wanted[i, j] = middle * float(scale[i, k]) + float(offset[i, k])
    return new[0], (net[0], wanted)


@pytest.mark.truth("each entry by the formula, in Python floats")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_weight_is_what_the_formula_says(bits):
    layer, (old, wanted) = packed(bits=bits)
    torch.testing.assert_close(layer.values(torch.float64), wanted, rtol=0, atol=1e-12)
    x = torch.randn(2, 5, 72, generator=torch.Generator().manual_seed(2))
    made = functional.linear(x.double(), wanted, old.bias.detach().double())
    torch.testing.assert_close(layer(x).double(), made, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.dequantise()(x).double(), made, rtol=1e-4, atol=1e-4)
    assert layer.bias.data_ptr() == old.bias.data_ptr()


@pytest.mark.truth("the float64 product with the same weight")
@pytest.mark.parametrize("n", [1, 3, 70])
def test_every_way_gives_the_product(n):
    layer, (_, wanted) = packed(64, 96)
    rows = torch.randn(n, 96, generator=torch.Generator().manual_seed(3))
    made = rows.double() @ wanted.T
    assert set(layer.ways()) == set(kernels())
    for way in layer.ways():
        gap = (WAYS[way](layer, rows).double() - made).norm() / made.norm()
        assert gap < 0.01, way


def test_the_way_that_is_taken_is_not_slower_than_float():
    layer, _ = packed(256, 256)
    rows = torch.randn(4, 256)
    way = layer.fastest(4, torch.float32)
    found = timed({w: lambda w=w: WAYS[w](layer, rows) for w in {way, "float"}})
    assert found[way] <= 1.5 * found["float"]  # the machine may be busy between the two timings


def test_it_runs_with_gradients_and_raises_in_backward():
    layer, _ = packed()
    x = torch.randn(2, 72, requires_grad=True)
    out = layer(x)
    assert out.requires_grad
    with pytest.raises(StateError, match="no gradient flows through packed weights"):
        out.sum().backward()
    with pytest.raises(ShapeError, match="rows of 72 features, got 70"):
        layer(torch.randn(2, 70))


def test_types_and_copies_keep_codes_and_scales():
    layer, _ = packed()
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    layer(torch.randn(1, 72))
    for other in (copy.deepcopy(layer), copy.deepcopy(layer).half(), layer.bfloat16()):
        found = other.state_dict()
        assert all(torch.equal(found[n], before[n]) for n in ("codes", "scale", "offset"))
        dtype = other.bias.dtype
        assert other(torch.randn(3, 72, dtype=dtype)).dtype == dtype
    assert layer(torch.empty(0, 72, dtype=torch.bfloat16)).shape == (0, 48)


def test_a_layer_with_two_names_is_exchanged_under_both():
    layer = nn.Linear(8, 8)
    net = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    change = Quantised(
        pack(torch.zeros(8, 8, dtype=torch.long), 4),
        torch.ones(8, 1).bfloat16(),
        torch.zeros(8, 1).bfloat16(),
        Grid(4, 8),
        (8, 8),
    )
    new = RewritePlan.of(net, {"a.weight": change}).fold(net)
    assert isinstance(new["a"], QuantLinear)
    assert new["b"][0] is new["a"]
    assert net["a"] is layer
