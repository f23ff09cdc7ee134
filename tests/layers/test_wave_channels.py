"""Channels as waves: pairs of them are complex numbers that are turned."""

import math

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import WaveChannels


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def normalised(x):
    flat = x.flatten(1)
    spread = (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return ((flat - flat.mean(1, keepdim=True)) / spread).reshape(x.shape)


def gelu(v):
    return 0.5 * v * (1.0 + math.erf(v / 2.0**0.5))


def waves_by_hand(layer, column):
    """The waves of one position, with Python's complex numbers."""
    phase, amplitude = (
        [
            sum(w * v for w, v in zip(row, column, strict=True)) + b
            for row, b in zip(m.weight[:, :, 0, 0].tolist(), m.bias.tolist(), strict=True)
        ]
        for m in (layer.phase, layer.amplitude)
    )
    wave = [a * gelu(t) for a, t in zip(amplitude, phase, strict=True)]
    top = max(range(len(column)), key=column.__getitem__)
    wave = [v + wave[top] for v in wave]
    turned = [
        complex(wave[2 * j], wave[2 * j + 1]) * complex(*w)
        for j, w in enumerate(layer.turn.tolist())
    ]
    return [part for z in turned for part in (z.real, z.imag)]


@pytest.mark.truth("complex numbers of Python, position by position")
@pytest.mark.parametrize(("dim", "expand"), [(3, 2), (5, 4)])
def test_waves(dim, expand):
    layer, x = filled(WaveChannels(dim, expand)), draw(2, dim, 3, 4)
    found = layer.turned(x)
    for r in range(2):
        for i in range(3):
            for j in range(4):
                wanted = waves_by_hand(layer, x[r, :, i, j].tolist())
                assert found[r, :, i, j].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.truth("sums over a 3 x 3 window, a gate and a product by hand")
@pytest.mark.parametrize("waves", [True, False])
def test_mixture(waves):
    layer, x = filled(WaveChannels(3, 2, waves=waves)), draw(2, 3, 4, 5)
    normed = normalised(x) * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
    made = layer.turned(normed)
    if not waves:
        torch.testing.assert_close(made, nn.functional.gelu(layer.phase(normed)))
    padded = nn.functional.pad(made, (1, 1, 1, 1))
    near = torch.zeros_like(made)
    for a in range(3):
        for b in range(3):
            near += layer.near.weight[:, 0, a, b, None, None] * padded[:, :, a : a + 4, b : b + 5]
    near = nn.functional.gelu(normalised(near + layer.near.bias[:, None, None]))
    inner = (near.flatten(2).mean(2) @ layer.squeeze.weight.T + layer.squeeze.bias).clamp(min=0.0)
    gate = 1.0 / (1.0 + torch.exp(-(inner @ layer.gate.weight.T + layer.gate.bias)))
    wanted = x + torch.einsum(
        "ow,rwhk->rohk", layer.out.weight[:, :, 0, 0], near * gate[:, :, None, None]
    )
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.truth("closed form: a turn by unit complex numbers keeps the length of each pair")
def test_a_turn_keeps_the_length_of_pairs():
    layer, x = filled(WaveChannels(4, 2)), draw(2, 4, 3, 3)
    with torch.no_grad():
        layer.turn.copy_(torch.tensor([[1.0, 0.0]] * 4))
        still = layer.turned(x).unflatten(1, (4, 2))
        angle = draw(4, seed=3)
        layer.turn.copy_(torch.stack((angle.cos(), angle.sin()), 1))
        turned = layer.turned(x).unflatten(1, (4, 2))
    torch.testing.assert_close(turned.norm(dim=2), still.norm(dim=2))
    gap = torch.atan2(turned[:, :, 1], turned[:, :, 0]) - torch.atan2(
        still[:, :, 1], still[:, :, 0]
    )
    torch.testing.assert_close(torch.cos(gap - angle[None, :, None, None]), torch.ones_like(gap))


def test_odd_numbers_of_waves_are_refused():
    with pytest.raises(InputError, match=r"an even dim \* expand"):
        WaveChannels(3, 3)
    assert WaveChannels(3, 3, waves=False).n_parameters < WaveChannels(3, 4).n_parameters
