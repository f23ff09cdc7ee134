"""Packed layers: what they multiply by, which way they take, gradients, types, copies."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sonde.core.errors import ShapeError, StateError
from sonde.tap import fingerprint
from sonde.tap.model.seeding import untouched
from sonde.weights import Grid, Quantised, QuantLinear, RewritePlan, kernels, pack
from sonde.weights._processor_kernels import Int4, half_of_packing
from sonde.weights.quant_linear import timed


def as_untouched(layer: Any) -> None:
    with untouched(layer):
        layer(torch.randn(2, layer.in_features))


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
    change = Quantised(pack(codes, bits), scale, offset, grid, n_in)
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
    assert torch.equal(layer.values(), wanted.float()), "rounded more than once"
    x = torch.randn(2, 5, 72, generator=torch.Generator().manual_seed(2))
    made = functional.linear(x.double(), wanted, old.bias.detach().double())
    torch.testing.assert_close(layer(x).double(), made, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.dequantise()(x).double(), made, rtol=1e-4, atol=1e-4)
    assert layer.bias.data_ptr() == old.bias.data_ptr()


@pytest.mark.truth("the float64 product with the same weight")
@pytest.mark.parametrize("n", [1, 3, 70])
@pytest.mark.parametrize(("bits", "group", "word"), [(4, 32, "int4"), (8, 96, "int8")])
def test_every_way_gives_the_product(n, bits, group, word):
    layer, (_, wanted) = packed(64, 96, bits, group)
    rows = torch.randn(n, 96, generator=torch.Generator().manual_seed(3))
    made = rows.double() @ wanted.T
    assert set(layer.ways()) == {"blocks", word} & set(kernels())
    for way in layer.ways():
        layer._take(way)
        found = layer.by_blocks(rows) if way == "blocks" else layer.by_kernel(rows)
        gap = (found.double() - made).norm() / made.norm()
        assert gap < (1e-6 if way == "blocks" else 0.01), way


@pytest.mark.slow
@pytest.mark.truth("the float64 product with the same weight")
@pytest.mark.parametrize(("n_out", "is_known"), [(128, True), (48, False)])
def test_many_rows_are_multiplied_in_float32_from_the_packing_of_the_kernel(n_out, is_known):
    if "int4" not in kernels() or not half_of_packing():
        pytest.skip("this processor has no kernel for 4 bits, or one with another packing")
    layer, (_, wanted) = packed(n_out, 4096)  # several blocks
    before = layer.codes.clone()
    layer._take("int4", few=2)
    assert bool(layer._kernel.half) == (is_known or n_out % (2 * half_of_packing()) == 0)
    rows = torch.randn(5, 4096, generator=torch.Generator().manual_seed(4))
    made = rows.double() @ wanted.T
    for n in (2, 5):
        gap = (layer.by_kernel(rows[:n]) - made[:n]).norm() / made[:n].norm()
        assert gap < (1e-5 if n == 5 and layer._kernel.half else 0.01)
        assert gap > 1e-5 or n == 5
    assert torch.equal(layer.own_codes(), before)


@pytest.mark.truth("the codes that were packed, after the kernel's private packing")
@pytest.mark.parametrize(
    ("bits", "group", "n_bytes"), [(4, 32, 48 * (80 + 20)), (8, 160, 48 * 166)]
)
def test_codes_come_back_from_the_packing_of_the_kernel(bits, group, n_bytes):
    if (word := f"int{bits}") not in kernels():
        pytest.skip(f"this processor has no kernel for {bits} bits")
    layer, (_, wanted) = packed(48, 160, bits, group)
    before = layer.codes.clone()
    layer._take(word)
    assert layer.codes.numel() == 0
    assert torch.equal(layer.own_codes(), before)
    torch.testing.assert_close(layer.values(torch.float64), wanted, rtol=0, atol=1e-12)
    assert layer.kernel_bytes == n_bytes
    for read in (fingerprint, lambda m: m.state_dict(), copy.deepcopy, as_untouched):
        layer._take(word)
        read(layer)
        assert torch.equal(layer.codes, before)
        assert layer.kernel_bytes == 0
    plain = fingerprint(layer)
    layer(torch.randn(2, 160))
    assert fingerprint(layer) == plain


@pytest.mark.truth("the kernel's packing of the whole weight at once")
def test_a_weight_is_packed_part_by_part():
    if "int4" not in kernels():
        pytest.skip("this processor has no kernel for 4 bits")
    layer = QuantLinear(4096, 208, 4, 32, bias=False)  # 64 outputs in a part, the last is short
    codes = torch.randint(0, 16, (208, 4096), dtype=torch.uint8)
    layer.codes = pack(codes, 4)
    scale, offset = (x.view(torch.bfloat16) for x in (layer.scale, layer.offset))
    layer._take("int4")
    assert torch.equal(layer._kernel.packed, Int4([codes], scale, offset, 32).packed)


@pytest.mark.slow
def test_a_layer_holds_one_form_of_its_weight_and_the_faster():
    layer, _ = packed(256, 256)
    full = 256 * 256 * 4
    for n in (1, 64, 3):
        layer(torch.randn(n, 256))
        held = sum(x.untyped_storage().nbytes() for x in layer.buffers()) + layer.kernel_bytes
        assert held < 0.2 * full
    if layer.fastest() == "int4":
        kernel, blocks = layer, copy.deepcopy(layer)
        kernel._take("int4")
        rows = torch.randn(1, 256)
        found = timed({"int4": lambda: kernel.by_kernel(rows), "b": lambda: blocks.by_blocks(rows)})
        assert found["int4"] < 1.5 * found["b"]  # the machine may be busy between the timings


def test_the_first_run_copies_nothing_that_watches_the_layer():
    class Watcher:
        def __call__(self, *args):
            return None

        def __deepcopy__(self, memo):
            raise AssertionError("a hook was copied")

    layer, _ = packed(176, 96)  # a shape that no other test times
    layer.register_forward_hook(Watcher())
    layer(torch.randn(2, 96))


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
        8,
    )
    new = RewritePlan.of(net, {"a.weight": change}).fold(net)
    assert isinstance(new["a"], QuantLinear)
    assert new["b"][0] is new["a"]
    assert net["a"] is layer


@pytest.mark.truth("the float64 product with the same weight")
@pytest.mark.parametrize("width", [1, 8, 24, 40, 72])
def test_rows_that_the_kernel_would_read_beyond_are_unpacked(width):
    """The eight-bit kernel of torch gives wrong numbers or ends the process there."""
    layer, (old, wanted) = packed(7, width, 8, width)
    assert layer.ways() == ["blocks"]
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(4))
    made = functional.linear(x.double(), wanted, old.bias.detach().double())
    torch.testing.assert_close(layer(x).double(), made, rtol=1e-4, atol=1e-4)
