"""Learned positions along slices, against loops."""

import math

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import DeformableAttention

ROWS, N, DIM, HEADS, POINTS = 2, 5, 6, 3, 2
WIDTH = DIM // HEADS


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(spread=1.5):
    """A layer with generic parameters, some of whose positions lie before and behind all slices."""
    layer = DeformableAttention(DIM, HEADS, POINTS).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, std=0.7, generator=torch.Generator().manual_seed(i))
    nn.init.normal_(layer.offset.weight, std=spread, generator=torch.Generator().manual_seed(50))
    return layer


def value_at(layer, row, head, position, real):
    """Value of one head at a position: each slice counts by its distance, up to one slice."""
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for s in range(len(row)):
        near = max(0.0, 1.0 - abs(position - s))
        if real[s] and near > 0.0:
            value = layer.value.weight @ row[s] + layer.value.bias
            total = total + near * value[head * WIDTH : (head + 1) * WIDTH]
    return total


def by_loops(layer, x, real):
    found, outside, inside = torch.zeros_like(x), 0, 0
    for r in range(len(x)):
        for t in range(x.shape[1]):
            offset = layer.offset.weight @ x[r, t] + layer.offset.bias
            score = layer.weight.weight @ x[r, t] + layer.weight.bias
            heads = []
            for h in range(HEADS):
                own = range(h * POINTS, (h + 1) * POINTS)
                total = sum(math.exp(float(score[i])) for i in own)
                head = torch.zeros(WIDTH, dtype=torch.float64)
                for i in own:
                    position = t + float(offset[i])
                    outside += not -1 < position < x.shape[1]
                    inside += 0 < position < x.shape[1] - 1
                    at = value_at(layer, x[r], h, position, real[r])
                    head = head + math.exp(float(score[i])) / total * at
                heads.append(head)
            found[r, t] = x[r, t] + layer.out.weight @ torch.cat(heads) + layer.out.bias
    return found, outside, inside


@pytest.mark.essential
@pytest.mark.truth("values weighted by their distance from each position, in loops")
@pytest.mark.parametrize("n", [N, 2, 1])
@torch.no_grad()
def test_every_position_is_read_between_its_slices(n):
    layer, x = made(), drawn(ROWS, n, DIM)
    found, outside, inside = by_loops(layer, x, torch.ones(ROWS, n).bool())
    assert outside > 0
    assert inside > 0 or n == 1
    torch.testing.assert_close(layer(x), found, rtol=1e-12, atol=1e-12)


@pytest.mark.truth("values weighted by their distance from each position, in loops")
@torch.no_grad()
def test_hidden_slices_give_nothing():
    layer, x = made(0.8), drawn(ROWS, N, DIM)
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    found, _, _ = by_loops(layer, x.masked_fill(~mask[..., None], 0.0), mask)
    torch.testing.assert_close(layer(x, mask=mask)[mask], found[mask], rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x, mask=mask)[~mask], x[~mask])


@pytest.mark.truth("finite differences, and zero for a position outside")
def test_gradients():
    layer, x = made(0.8), drawn(ROWS, 3, DIM).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    offset = layer.offset.bias
    assert torch.autograd.gradcheck(
        lambda bias: torch.func.functional_call(layer, {"offset.bias": bias}, x.detach()), offset
    )
    with torch.no_grad():
        layer.offset.weight.zero_()
        offset.fill_(50.0)
    (grad,) = torch.autograd.grad(layer(x).sum(), offset)
    assert float(grad.abs().max()) == 0.0


@pytest.mark.truth("the mean of the shifted values, by hand")
@torch.no_grad()
def test_a_new_layer_reads_the_slices_on_both_sides():
    layer, x = DeformableAttention(DIM, HEADS, POINTS).double(), drawn(ROWS, N, DIM)
    assert torch.equal(layer(x), x)
    wanted = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0]], dtype=torch.float64)
    places = torch.arange(N, dtype=torch.float64)
    assert torch.equal(layer.positions(x)[1], places[:, None] + wanted[:, None])
    assert torch.equal(layer.weights(x), torch.full((ROWS, HEADS, N, POINTS), 0.5).double())
    layer.out.weight.copy_(torch.eye(DIM))
    values = torch.cat([layer.value(x), torch.zeros(ROWS, 2, DIM)], 1)
    later = (values[:, 1:-1] + values[:, 2:]) / 2
    torch.testing.assert_close((layer(x) - x)[..., :WIDTH], later[..., :WIDTH])


def test_an_offset_is_learned():
    """A slice has to tell what stood 2.5 slices before it: no start has that position."""
    torch.manual_seed(0)
    layer = DeformableAttention(4, 1, 1)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(400):
        x = torch.randn(64, 8, 4).cumsum(1)
        wanted = (x[:, 2:-3] + x[:, 3:-2]) / 2  # at slices 5 to 7
        optimiser.zero_grad()
        (layer(x)[:, 5:] - x[:, 5:] - wanted).square().mean().backward()
        optimiser.step()
    found = layer.positions(x)[..., 0] - torch.arange(8)
    assert float(found[:, 0, 5:].median().detach()) == pytest.approx(-2.5, abs=0.2)


def test_what_is_wrong_is_said():
    with pytest.raises(InputError, match="got 3 heads, 4 points and dim=8"):
        DeformableAttention(8, 3)
    with pytest.raises(InputError, match="at least one head and one point"):
        DeformableAttention(8, 2, 0)
