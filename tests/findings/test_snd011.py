import pytest
import torch
from torch import nn

from findings._nets import assert_clear, assert_raised, checked, noise, tensors
from narrow import expect
from sonde.core.stream import Stream
from sonde.findings.codes.snd011 import SND011


def net(bias: float = 0.0, share: float = 0.0, width: int = 100) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4)).eval()
    with torch.no_grad():
        expect(nn.Linear, module[0]).bias[: round(share * width)] += bias
    return module


@pytest.mark.parametrize(("share", "level"), [(0.01, "note"), (0.6, "warning"), (0.99, "error")])
def test_dead_units_are_counted_where_the_bias_kills_them(share: float, level: str) -> None:
    finding = assert_raised(checked(SND011(), tensors(net(-100.0, share), noise(300, 8))), level)
    assert finding.sites == ("1",)
    assert finding.figure.value == pytest.approx(share)
    assert len(finding.units) == min(20, round(100 * share))


def test_zero_rows_of_a_weight_are_constant_units() -> None:
    module = net()
    with torch.no_grad():
        first = expect(nn.Linear, module[0])
        first.weight[:55] = 0
        first.bias[:55] = 0.3
    finding = assert_raised(checked(SND011(), tensors(module, noise(300, 8))), "warning")
    assert "55 of 100 units" in finding.sentence
    assert "constant" in finding.sentence
    assert "change on fewer than" in finding.sentence


def test_rare_and_small_units_are_alive() -> None:
    x = noise(2000, 16).double()
    x[:, 3] = 0
    x[::100, 3] = 1.0
    x[:, 4] *= 1e-3
    assert_clear(checked(SND011(), Stream.of(x)))


@pytest.mark.truth("(1 - bound)^n = 0.01 / units, solved for the bound")
def test_the_bound_of_what_was_not_seen() -> None:
    x = noise(1797, 128)
    x[:, :87] = 0
    check = checked(SND011(), Stream.of(x))
    assert check.finding is not None
    assert check.finding.sentence == (
        "87 of 128 units at x are zero on all 1,797 rows, so they fire on fewer than 0.52 % of "
        "similar inputs (99 % confidence)."
    )
    assert (1 - 0.00525) ** 1797 < 0.01 / 128 < (1 - 0.0052) ** 1797


def test_withheld_below_the_rows_that_silence_needs() -> None:
    check = checked(SND011(), Stream.of(noise(100, 768)))
    assert check.state == "withheld"
    assert check.tables["needed"] == 225
    assert check.tables["present"] == 100
