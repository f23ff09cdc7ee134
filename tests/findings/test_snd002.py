import pytest
import torch

from findings._nets import assert_clear, assert_raised, checked, deep_relu, noise, tensors
from sonde.core.stream import Stream
from sonde.findings.codes.snd002 import SND002, spacing


@pytest.mark.truth("torch.nextafter in float32; the same in bfloat16 by bits")
def test_spacing_is_the_gap_to_the_next_number() -> None:
    x = torch.tensor([0.0, 1.0, 1.5, -3.0, 1000.0, 0.1])
    size = x.abs()
    gap = torch.nextafter(size, torch.full_like(x, torch.inf)) - size
    assert torch.equal(spacing(x, "float32")[1:], gap[1:].double())
    narrow = size.bfloat16()
    above = (narrow.view(torch.int16) + 1).view(torch.bfloat16)
    assert torch.equal(spacing(narrow, "bfloat16")[1:], (above.double() - narrow.double())[1:])
    assert spacing(x, "float32")[0] == 0


@pytest.mark.truth("mean squared rounding error of the same rows in float64")
@pytest.mark.parametrize(("mean", "level"), [(30.0, "note"), (100.0, "warning"), (300.0, "error")])
def test_rounding_share_is_the_true_share(mean: float, level: str) -> None:
    x = noise(4000, 8).double() + mean
    rounded = x.bfloat16()
    truth = float((rounded.double() - x).square().sum() / (x - x.mean(0)).square().sum())
    figure = assert_raised(checked(SND002(), Stream.of(rounded)), level).figure
    # The variance of the rounded rows, which the figure divides by, holds the rounding itself.
    assert figure.value == pytest.approx(truth / (1 + truth), rel=0.15)


def test_a_spacing_coarser_than_the_spread_is_an_error() -> None:
    finding = assert_raised(
        checked(SND002(), Stream.of((noise(400, 8) + 1000).bfloat16())), "error"
    )
    assert "further apart than the standard deviation" in finding.sentence


def test_near_the_end_of_the_range() -> None:
    x = noise(100, 8).half()
    x[5, 3] = 30000
    finding = assert_raised(checked(SND002(), Stream.of(x)), "warning")
    assert "46 % of the largest number of float16" in finding.sentence


@pytest.mark.slow
def test_default_initialisation_of_a_deep_net_loses_precision() -> None:
    x = noise(200, 64).bfloat16()
    check = checked(SND002(), tensors(deep_relu(20, 64, None).bfloat16(), x, sites="39"))
    assert check.state == "raised"
    assert check.finding is not None
    assert check.finding.level in ("warning", "error")
    healthy = deep_relu(20, 64, 2**0.5).bfloat16()
    assert_clear(checked(SND002(), tensors(healthy, x, sites="39")))


def test_white_rows_are_clear() -> None:
    assert_clear(checked(SND002(), Stream.of(noise(200, 8))))
