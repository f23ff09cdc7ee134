"""SmoothQuant: the closed form of its scales, planted large channels, and what is refused."""

import pytest
import torch
from torch import nn

from sonde.compress import SmoothQuant
from sonde.core.errors import InputError


def drawn() -> tuple[nn.Sequential, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.LayerNorm(12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5), nn.GELU(), nn.Linear(5, 3)
    )
    net = net.eval().requires_grad_(False)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=draw) * 0.4 + 0.05
    return net, torch.randn(90, 12, generator=draw)


def inputs_of(net: nn.Sequential, x: torch.Tensor, i: int) -> torch.Tensor:
    return net[:i](x)


@pytest.mark.truth("max|x|^(1-p) max|w|^(1-p) x max|w|^p of each channel, before scaling")
@pytest.mark.parametrize("power", [0.5, 0.7])
def test_sizes_after_scaling_have_their_closed_form(power):
    net, x = drawn()
    x[0, 3] = 9.0  # the first row has the largest input of a channel
    plan = SmoothQuant(power=power, smooth_only=True).plan(net, {"calibration": x})
    new = plan.fold(net)
    assert plan.figures["scaled"] == 2.0  # no scale passes gelu
    for i in (1, 3):
        inputs, columns = inputs_of(net, x, i).abs().amax(0), net[i].weight.abs().amax(0)
        after = inputs_of(new, x, i).abs().amax(0)
        live = inputs > 0
        wanted = ((inputs * columns) ** (1 - power))[live]
        torch.testing.assert_close(after[live], wanted, rtol=1e-4, atol=1e-5)
    found = new[3].weight.abs().amax(0)  # rows of layer 1 are divided for layer 3
    torch.testing.assert_close(after * found, inputs * columns, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new(x), net(x), rtol=1e-4, atol=1e-5)


def eight_bits(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().max() / 127
    return (x / scale).round() * scale


@pytest.mark.truth("three planted channels, undone in the weights; inputs rounded to eight bits")
def test_planted_channels_break_eight_bit_inputs_and_scales_mend_them():
    net, x = drawn()
    planted = torch.ones(12)
    planted[[2, 5, 9]] = 300.0
    net[0].weight.data *= planted
    net[0].bias.data *= planted
    net[1].weight.data /= planted

    def error(model: nn.Sequential) -> float:
        after = model[1:](eight_bits(model[0](x)))
        return float((after - model(x)).square().mean() / model(x).var())

    new = SmoothQuant(smooth_only=True).plan(net, {"calibration": x}).fold(net)
    assert error(net) > 30 * error(new)
    small = SmoothQuant().plan(net, {"calibration": x}).fold(net)
    assert float((small(x) - net(x)).square().mean() / net(x).var()) < 1e-2
    assert SmoothQuant(bits=None).plan(net, {"calibration": x}).fold(net) is net


def test_a_power_outside_its_range_is_refused():
    with pytest.raises(InputError, match=r"power in \(0, 1\), got 1\.0"):
        SmoothQuant(power=1.0)
