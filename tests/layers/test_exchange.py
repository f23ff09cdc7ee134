"""Streams that exchange states."""

import math

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers import Exchange


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def test_swapped_twice_is_the_identity():
    a, b = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    for axis in ("channel", "position"):
        layer = Exchange(axis=axis)
        c, d = layer(a, b)
        assert torch.equal(c[:, 1, 1], b[:, 1, 1])
        assert torch.equal(c[:, 0, 0], a[:, 0, 0])
        back = layer(c, d)
        assert torch.equal(back[0], a)
        assert torch.equal(back[1], b)
    assert torch.equal(Exchange()(a, b)[1][:, 0, 1], a[:, 0, 1])


@pytest.mark.truth("the layers of both sides, listed by hand")
@pytest.mark.parametrize(
    ("move", "crossed"), [(0.5, (1, 3)), (1.0, (0, 1, 2, 3)), (0.25, (3,)), (0.0, ())]
)
def test_whole_layers_change_sides(move, crossed):
    first = [draw(2, 3 + i, 8 - i, 5, seed=i) for i in range(4)]
    second = [draw(2, 3 + i, 8 - i, 5, seed=9 + i) for i in range(4)]
    layer = Exchange(axis="layer", n_streams=8, move=move)
    found = layer(*first, *second)
    for i in range(4):
        mine, other = (second, first) if i in crossed else (first, second)
        assert torch.equal(found[i], mine[i])
        assert torch.equal(found[4 + i], other[i])
    assert all(map(torch.equal, layer(*found), (*first, *second)))
    with pytest.raises(
        ShapeError, match=r"\(row dim high wide\), got \(2, 4, 7, 5\) and \(2, 3, 8, 5\)"
    ):
        layer(*first, second[0], second[0], *second[2:])
    with pytest.raises(InputError, match="an even number of layers of two sides"):
        Exchange(axis="layer", n_streams=5)


@pytest.mark.truth("levels moved by hand: maxima of blocks up, repeated entries down")
def test_shift():
    fine, mid, coarse = draw(1, 8, 8, 8), draw(1, 8, 4, 4, seed=1), draw(1, 8, 2, 2, seed=2)
    found = Exchange("shift", n_streams=3)(fine, mid, coarse)
    assert [x.shape for x in found] == [x.shape for x in (fine, mid, coarse)]
    blocks = fine[:, :2].reshape(1, 2, 4, 2, 4, 2).amax((3, 5))
    torch.testing.assert_close(found[1][:, :2], blocks)
    down = coarse[:, 2:4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(found[1][:, 2:4], down)
    assert torch.equal(found[1][:, 4:], mid[:, 4:])
    assert torch.equal(found[0][:, :2], fine[:, :2])
    rolled = Exchange("shift", n_streams=3, non_adjacent=True)(fine, mid, coarse)
    torch.testing.assert_close(rolled[0][0, 0, 5, 3], coarse[0, 0, 1, 0])
    flat = Exchange("shift", n_streams=3)(*(torch.full_like(x, 2.5) for x in (fine, mid, coarse)))
    assert all(bool((x == 2.5).all()) for x in flat)


@pytest.mark.truth("closed form: equal streams differ by nothing, and order changes the sign")
def test_difference():
    layer, a, b = filled(Exchange("difference", 3)), draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    assert torch.equal(layer(a, a)[0], a)
    torch.testing.assert_close(layer.difference(a, b), -layer.difference(b, a))
    size = (a - b).abs()
    channel = torch.sigmoid(layer.channel(size.flatten(2).mean(2)))[1, 2]
    place = torch.sigmoid(layer.place(size.mean(1, keepdim=True)))[1, 0, 3, 1]
    found = layer.difference(a, b)[1, 2, 3, 1]
    torch.testing.assert_close(found, (a - b)[1, 2, 3, 1] * channel * place)
    moved = layer(a, b)
    torch.testing.assert_close(moved[0] - a, b - moved[1])


@pytest.mark.truth("a loop over the window, and a Gaussian blur for a wide second width")
def test_equalise():
    x = draw(1, 2, 5, 6)
    layer = Exchange("equalise", 1, widths=(0.8, 1.3), radius=1)
    wide = Exchange("equalise", 1, widths=(0.8, 1e9), radius=1)
    for one, far in ((layer, 1.3), (wide, 1e9)):
        top, total = torch.zeros(2).double(), 0.0
        for i in (1, 2, 3):
            for j in (0, 1):
                gap = float((x[0, :, i, j] - x[0, :, 2, 0]).square().sum())
                w = math.exp(-((i - 2) ** 2 + j**2) / (2 * 0.64) - gap / (2 * far * far))
                top, total = top + w * x[0, :, i, j], total + w
        torch.testing.assert_close(one.blurred(x)[0, :, 2, 0], top / total)


@pytest.mark.truth("cross attention by hand; torch's for all tokens")
def test_bridge():
    layer, a, b = filled(Exchange("bridge", 4, top=2)), draw(1, 3, 4), draw(1, 6, 4, seed=1)
    best = layer.scores(b)[0].topk(2).indices
    logits = torch.zeros(3, 2).double()
    for i in range(3):
        for n, j in enumerate(best.tolist()):
            key = layer.key(b[0, j]) + layer.near[max(-2, min(2, j - i)) + 2]
            logits[i, n] = layer.query(a[0, i]) @ key
    wanted = a[0] + layer.out((logits / 2.0).softmax(-1) @ layer.value(b[0, best]))
    torch.testing.assert_close(layer(a, b)[0][0], wanted)
    every = filled(Exchange("bridge", 4, top=9))
    nn.init.zeros_(every.near)
    cross = nn.functional.scaled_dot_product_attention(every.query(a), every.key(b), every.value(b))
    torch.testing.assert_close(every(a, b)[0], a + every.out(cross))


@pytest.mark.parametrize("how", ["swap", "difference", "equalise", "bridge", "concat_gate"])
def test_an_absent_stream_has_no_influence(how):
    layer = filled(Exchange(how, 4))
    shape = (2, 4, 3, 5) if how in ("difference", "equalise") else (2, 5, 4)
    a, b = draw(*shape), draw(*shape, seed=1).requires_grad_()
    present = torch.tensor([True, True]), torch.tensor([True, False])
    found = layer(a, b, present=present)
    (grad,) = torch.autograd.grad(sum(y.square().sum() for y in found), b)
    assert float(grad[1].abs().max()) == 0.0
    assert float(grad[0].abs().max()) > 0.0
    torch.testing.assert_close(found[0][0], layer(a, b)[0][0])
    if how != "concat_gate":
        assert torch.equal(found[0][1], a[1])


def test_fresh_streams_are_left_alone_and_messages():
    for how, shape in (("shift", (2, 4, 3, 5)), ("concat_gate", (2, 5, 4)), ("bridge", (2, 5, 4))):
        a, b = draw(*shape).float(), draw(*shape, seed=1).float()
        found = Exchange(how, 4)(a, b)
        assert torch.equal(found[0], a)
        assert torch.equal(found[1], b)
    with pytest.raises(InputError, match="expected how as one of swap, shift"):
        Exchange("blend")
    with pytest.raises(ShapeError, match="streams of one shape"):
        Exchange()(draw(2, 5, 4), draw(2, 6, 4))


def test_a_second_stream_without_a_real_token_is_refused():
    a, b = draw(2, 3, 4), draw(2, 5, 4, seed=1)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    with pytest.raises(InputError, match="a real token in every row, got none in row 1"):
        filled(Exchange("bridge", 4, top=3))(a, b, mask=mask)


@pytest.mark.truth("the numbers of the units that move, by hand")
@pytest.mark.parametrize(
    ("share", "moves"),
    [(0.0, []), (0.25, [3, 7]), (0.3, [3, 6, 9]), (0.5, [1, 3, 5, 7, 9]), (1.0, range(10))],
)
def test_swap_moves_a_fraction(share, moves):
    a, b = draw(2, 10, 10), draw(2, 10, 10, seed=1)
    for axis, at in (("channel", 2), ("position", 1)):
        layer = Exchange("swap", move=share, axis=axis)
        found = layer(a, b)
        for i in range(10):
            mine, other = (b, a) if i in moves else (a, b)
            assert torch.equal(found[0].select(at, i), mine.select(at, i))
            assert torch.equal(found[1].select(at, i), other.select(at, i))
        assert all(map(torch.equal, layer(*found), (a, b)))
