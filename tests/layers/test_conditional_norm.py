"""Norms with a condition."""

import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import InputError, ShapeError
from sonde.layers import ConditionalNorm, conditioned


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


@pytest.mark.truth("values printed in the handbook")
def test_four_numbers():
    found = ConditionalNorm(4)(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))[0].tolist()
    assert found == pytest.approx([-1.341635, -0.447212, 0.447212, 1.341635], abs=1e-6)


def test_a_fresh_layer_is_the_norm_it_wraps_and_gives_it_back():
    for norm, shape in (
        (nn.LayerNorm(6, eps=1e-3), (3, 5, 6)),
        (nn.RMSNorm(6), (3, 5, 6)),
        (nn.GroupNorm(3, 6), (3, 6, 4, 2)),
    ):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
        layer, x = ConditionalNorm.of(norm, 2), draw(*shape).float()
        assert torch.equal(layer(x, torch.randn(3, 2)), norm(x))
        assert layer.norm is norm
    with pytest.raises(InputError, match="over one axis"):
        ConditionalNorm.of(nn.LayerNorm((4, 6)), 2)


@pytest.mark.truth("moments and a linear map by hand")
def test_shifts():
    layer, x, c = filled(ConditionalNorm(6, 2)), draw(3, 5, 6), draw(3, 2, seed=3)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    made = c @ layer.shift.weight.T + layer.shift.bias
    gain, bias = made[:, None, :6], made[:, None, 6:]
    torch.testing.assert_close(
        layer(x, c), (layer.norm.weight + gain) * normed + layer.norm.bias + bias
    )
    maps = filled(ConditionalNorm(6, 2, "group", groups=3))
    y, parts = draw(3, 6, 4, 5), draw(3, 6, 4, 5).reshape(3, 3, 40)
    parts = (parts - parts.mean(-1, keepdim=True)) / (
        parts.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    made = (c @ maps.shift.weight.T + maps.shift.bias)[..., None, None]
    wanted = (maps.norm.weight[:, None, None] + made[:, :6]) * parts.reshape(y.shape)
    torch.testing.assert_close(maps(y, c), wanted + maps.norm.bias[:, None, None] + made[:, 6:])
    torch.testing.assert_close(layer(3.0 * x - 2.0, c), layer(x, c), rtol=1e-4, atol=1e-4)


def test_an_inserted_layer_reads_the_condition_of_the_block():
    layer, net = filled(ConditionalNorm(4, 2, "none")), nn.Sequential(nn.Linear(3, 4)).double()
    new, x, c = sonde.inserted(net, {"0": layer}), draw(5, 3), draw(5, 2, seed=2)
    made = c @ layer.shift.weight.T + layer.shift.bias
    with conditioned(new, c):
        torch.testing.assert_close(new(x), net(x) * (1 + made[:, :4]) + made[:, 4:])
    assert torch.equal(new(x), net(x))


@pytest.mark.truth("the layer on one token at a time, with the condition of that token")
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@torch.no_grad()
def test_a_condition_for_each_token(norm):
    layer = filled(ConditionalNorm(4, condition=3, norm=norm))
    x, c = draw(2, 5, 4), draw(2, 5, 3, seed=1)
    wanted = torch.stack([layer(x[:, t], c[:, t]) for t in range(5)], 1)
    torch.testing.assert_close(layer(x, c), wanted)
    assert torch.equal(layer(x=x, condition=c), layer(x, c))
    with conditioned(layer, c):
        assert torch.equal(layer(x), layer(x, c))
    for wrong in (c[:, :4], c[..., :2]):
        with pytest.raises(ShapeError, match="condition=3"):
            layer(x, wrong)
        with pytest.raises(ShapeError, match="condition=3"):
            layer(x, condition=wrong)
