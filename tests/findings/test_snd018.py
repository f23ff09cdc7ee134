import pytest
import torch
from torch import Tensor, nn

from findings._nets import assert_clear, assert_raised, checked, noise, tensors
from sonde.core.stream import Stream
from sonde.findings.codes.snd018 import SND018


class FakeQuantised(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        scale = 6.0 / self.levels
        return (x / scale).round().clamp(0, self.levels) * scale


@pytest.mark.slow
def test_rounding_to_few_levels_is_seen() -> None:
    torch.manual_seed(0)
    for bits in (8, 4):
        module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), FakeQuantised(bits)).eval()
        finding = assert_raised(checked(SND018(), tensors(module, 2 * noise(600, 8))), "note")
        assert finding.sites == ("2",)


@pytest.mark.slow
def test_sixteen_bits_are_no_grid() -> None:
    x = noise(2048, 12)
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        assert_clear(checked(SND018(), Stream.of(x.to(kind).float())))
    # Within one binade bfloat16 itself is a grid of 128 values, whichever format holds them.
    grid = (1.5 + 0.1 * x).bfloat16()
    assert len(grid[:, 0].unique()) < 128
    assert_clear(checked(SND018(), Stream.of(grid)))
    assert_clear(checked(SND018(), Stream.of(grid.float())))
    assert_clear(checked(SND018(), Stream.of((1.5 + 0.01 * x).half().float())))


@pytest.mark.slow
def test_float32_states_of_an_autocast_layer_are_no_grid() -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = 6.0 + 0.5 * self.layer(x)
            return y.float()

    torch.manual_seed(0)
    module = nn.Sequential(Autocast(), nn.Identity(), nn.Linear(16, 4)).eval()
    stream = tensors(module, noise(600, 8), sites=["0"])
    assert stream.schema[0].dtype == "float32"
    assert_clear(checked(SND018(), stream))
    rounded = nn.Sequential(Autocast(), FakeQuantised(4)).eval()
    assert_raised(checked(SND018(), tensors(rounded, 2 * noise(600, 8), sites=["1"])), "note")


def test_saturated_units_of_two_values_are_no_grid() -> None:
    assert_clear(checked(SND018(), Stream.of(noise(400, 12).sign())))


def test_means_over_positions_are_not_looked_at() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([FakeQuantised(4), FakeQuantised(4)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x.mean(dim=1)

    x = noise(300 * 4, 8).reshape(300, 4, 8)
    check = checked(SND018(), tensors(Rounded().eval(), x, reducer="mean"))
    assert check.state == "not_applicable"
