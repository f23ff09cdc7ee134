"""Levels of a pyramid that are fused with neighbours, or with all levels."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from sonde.core.errors import InputError, ShapeError
from sonde.layers import LevelFusion


def made(meets, n_levels=3, dim=4, refine=False):
    layer = LevelFusion(dim, n_levels, meets, refine).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def levels(dim=4):
    draw = torch.Generator().manual_seed(9)
    return [torch.randn(2, dim, s, s, generator=draw, dtype=torch.float64) for s in (8, 4, 2)]


@pytest.mark.truth("levels pooled and repeated by other functions")
@torch.no_grad()
def test_neighbours():
    layer, (a, b, c) = made("both"), levels()
    first = a + layer.maps[0]((a + interpolate(b, scale_factor=2)) / 2)
    second = b + layer.maps[1]((b + interpolate(c, scale_factor=2) + max_pool2d(first, 2)) / 3)
    third = c + layer.maps[2]((c + max_pool2d(second, 2)) / 2)
    for own, wanted in zip(layer(a, b, c), (first, second, third), strict=True):
        torch.testing.assert_close(own, wanted)
    above = made("coarser")
    third = c + above.maps[2](c)
    second = b + above.maps[1]((b + interpolate(third, scale_factor=2)) / 2)
    torch.testing.assert_close(above(a, b, c)[1:], (second, third))


@pytest.mark.truth("a loop over channels and places")
@torch.no_grad()
def test_every_level_meets_all_by_weights_of_channels_and_places():
    layer, (a, b, c) = made("dense"), levels()
    at_b = [max_pool2d(a, 2), b, interpolate(c, scale_factor=2)]
    row, dim, i, j = 1, 2, 3, 0
    by_channel = [float(y[row, dim].mean() * layer.channel[1, k, dim]) for k, y in enumerate(at_b)]
    by_place = [float(y[row, :, i, j] @ layer.place[1, k]) / 2 for k, y in enumerate(at_b)]
    weight = sum(torch.tensor(s, dtype=torch.float64).softmax(0) for s in (by_channel, by_place))
    wanted = sum(w * y[row, dim, i, j] for w, y in zip(weight, at_b, strict=True)) / 2
    torch.testing.assert_close(layer.met(a, b, c)[1][row, dim, i, j], wanted)
    torch.testing.assert_close(layer(a, b, c)[1], b + layer.maps[1](layer.met(a, b, c)[1]))


@pytest.mark.truth("attention by a loop over the places of all levels")
@pytest.mark.parametrize("meets", ["coarser", "dense"])
@torch.no_grad()
def test_each_place_is_refined_by_all_fused_levels(meets):
    layer, plain = made(meets, refine=True), made(meets)
    plain.load_state_dict(layer.state_dict(), strict=False)
    fused = plain(*levels())
    row, i, j = 1, 2, 5
    query, key, value = (part.weight for part in layer.heads)
    places = [
        max_pool2d(x, 2**k)[row, :, a, b]
        for x, k in zip(fused, (2, 1, 0), strict=True)
        for a in range(2)
        for b in range(2)
    ]
    own = fused[0][row, :, i, j]
    scores = torch.stack([(query @ own) @ (key @ y) for y in places]) / 4**0.5
    brought = sum(w * (value @ y) for w, y in zip(scores.softmax(0), places, strict=True))
    wanted = own + layer.out.weight @ brought
    torch.testing.assert_close(layer(*levels())[0][row, :, i, j], wanted)


@torch.no_grad()
def test_an_untrained_refinement_changes_nothing():
    layer, plain = LevelFusion(4, meets="dense", refine=True), LevelFusion(4, meets="dense")
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = [level.float() for level in levels()]
    assert all(torch.equal(a, b) for a, b in zip(layer(*x), plain(*x), strict=True))


@pytest.mark.parametrize("meets", ["both", "coarser", "dense"])
def test_levels_reach_those_that_they_should(meets):
    layer = made(meets)
    x = [level.requires_grad_() for level in levels()]
    fine, _, coarse = layer(*x)
    to_coarse, to_fine = (
        torch.autograd.grad(to.sum(), of, retain_graph=True, allow_unused=True)[0]
        for to, of in ((coarse, x[0]), (fine, x[2]))
    )
    assert (to_coarse is not None and bool(to_coarse.any())) == (meets != "coarser")
    assert (to_fine is not None and bool(to_fine.any())) == (meets != "both")


def test_one_level_is_refused_and_so_are_too_few():
    with pytest.raises(InputError, match="at least two levels, got dim=4 and n_levels=1"):
        LevelFusion(4, 1)
    with pytest.raises(ShapeError, match=r"expected 3 levels.*got 2"):
        made("both")(*levels()[:2])
