"""Columns that are inverted: the inverse, gradients beside plain ones, memory, dropout."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from sonde.core import InputError, StateError
from sonde.layers import Reversible


def made(n_columns=5, scale=0.4, **parameters):
    torch.manual_seed(2)
    layer = Reversible(8, 4, n_columns, **parameters).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += scale * torch.randn(p.shape, dtype=p.dtype)
    return layer


def states():
    return torch.randn(3, 4, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.truth("a loop over columns and levels by the definition")
@torch.no_grad()
def test_columns_are_the_definition():
    layer, x = made(2), states()
    for column in layer.columns:
        g, new = 0.5 + 0.5 * column.keep.exp(), []
        for i in range(4):
            near = (new[i - 1] if i else 0) + (x[:, i + 1] if i < 3 else 0)
            new.append(column.parts[i](near) + g[i] * x[:, i])
        x = torch.stack(new, 1)
    torch.testing.assert_close(layer(states()), x)


@pytest.mark.truth("the input itself; the handbook's 1e-13 for 20 columns of 4 levels in float64")
def test_the_inverse_gives_the_input_back():
    layer, x = made(20, 0.1), states()
    assert float((layer.inverse(layer(x)) - x).abs().max()) < 1e-11


@pytest.mark.truth("plain back-propagation through stored columns, dropout included")
@pytest.mark.parametrize(
    "block", [None, nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh())]
)
def test_gradients_are_those_of_stored_columns(block):
    found = []
    for recompute in (True, False):
        layer, x = made(4, 0.3, block=block, recompute=recompute), states().requires_grad_()
        torch.manual_seed(6)
        layer(x).square().sum().backward()
        after = torch.rand(1)
        found.append([x.grad, *(p.grad for p in layer.parameters()), after])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-8, atol=1e-9)


@pytest.mark.truth("plain back-propagation through stored columns")
def test_gradients_under_autocast_are_those_of_stored_columns():
    found = []
    for recompute in (True, False):
        layer, x = made(4, 0.3, recompute=recompute).float(), states().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(x).square().sum()
        loss.backward()
        found.append([x.grad, *(p.grad for p in layer.parameters())])
    for mine, plain in zip(*found, strict=True):
        assert float((mine - plain).norm()) < 1e-3 * float(plain.norm())


@pytest.mark.truth("bytes of the tensors that autograd stores")
def test_memory_does_not_grow_with_the_columns():
    def stored(n, recompute):
        layer, x, seen = made(n, recompute=recompute), states().requires_grad_(), {}
        weights = {p.data_ptr() for p in layer.parameters()}

        def keep(t):
            if t.data_ptr() not in weights:
                seen[t.data_ptr()] = t.numel()
            return t

        with saved_tensors_hooks(keep, lambda t: t):
            y = layer(x)
        return y.shape.numel(), sum(seen.values())

    size, flat = stored(3, True)
    assert flat == size
    assert stored(12, True)[1] == size
    assert stored(12, False)[1] > 3.5 * stored(3, False)[1]


@pytest.mark.truth("gradients of stored columns: where they are off, the backward pass is refused")
@pytest.mark.parametrize(
    ("scale", "keep", "dtype", "is_right"),
    [
        (0.1, -0.1, torch.float32, True),
        (0.2, -8.0, torch.float32, False),
        (0.3, -8.0, torch.float32, False),
        (0.2, -8.0, torch.float64, True),
        (0.1, -1.0, torch.bfloat16, False),
    ],
)
def test_a_recomputed_input_that_is_off_is_refused(scale, keep, dtype, is_right):
    layer, x = made(20, scale), states().to(dtype)
    with torch.no_grad():
        for column in layer.columns:
            column.keep.fill_(keep)
    found = []
    for recompute in (False, True):
        own = copy.deepcopy(layer).to(dtype)
        own.recompute = recompute
        loss = own(x).square().sum()
        if recompute and not is_right:
            with pytest.raises(StateError, match="expected the inverse to reproduce the inputs"):
                loss.backward()
            return
        loss.backward()
        found.append([p.grad for p in own.parameters()])
    for mine, plain in zip(*found, strict=True):
        assert float((mine - plain).norm()) < 1e-3 * float(plain.norm())


def test_a_frozen_block_gets_no_gradient():
    layer = made(2)
    layer.columns[0].parts[0].requires_grad_(False)
    layer(states()).sum().backward()
    assert layer.columns[0].parts[0][0].weight.grad is None
    assert layer.columns[1].parts[0][0].weight.grad is not None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Reversible(4, level=1), "2 levels or more"),
        (lambda: Reversible(4, block=nn.BatchNorm1d(4)), "without batch norm, got BatchNorm1d"),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
