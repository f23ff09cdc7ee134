import pytest
import torch

from findings._nets import assert_clear, assert_raised, checked, deep_relu, noise, tensors
from sonde.core.stream import Stream
from sonde.findings.codes.snd023 import SND023


@pytest.mark.truth("mean cosine of all pairs of rows, by brute force")
def test_mean_cosine_follows_from_the_spread() -> None:
    x = noise(400, 50).double() * 0.15 + 1.0
    check = checked(SND023(note=0.2), Stream.of(x))
    assert check.figure is not None
    kept = torch.ones(50, dtype=torch.bool)
    kept[x.mean(0).square().topk(3).indices] = False
    unit = torch.nn.functional.normalize(x[:, kept], dim=1)
    pairs = unit @ unit.T
    mean = float((pairs.sum() - 400) / (400 * 399))
    assert 1 / (1 + check.figure.value**2) == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize(("scale", "level"), [(0.05, "note"), (0.01, "warning"), (1e-5, "error")])
def test_levels(scale: float, level: str) -> None:
    x = noise(200, 30).double() * scale + 1.0
    finding = assert_raised(checked(SND023(), Stream.of(x)), level)
    assert finding.common == (level == "note")


def test_default_initialisation_squeezes_rows() -> None:
    stream = tensors(deep_relu(20, 64, None), noise(64, 64), sites=["19", "39"])
    check = checked(SND023(), stream)
    assert_raised(check, "error")
    healthy = tensors(deep_relu(20, 64, 2**0.5), noise(64, 64), sites=["19", "39"])
    assert checked(SND023(), healthy).state == "clear"


def test_few_large_means_are_left_out() -> None:
    x = noise(200, 30)
    x[:, 4] += 3000
    assert_clear(checked(SND023(), Stream.of(x)))


def test_rows_that_differ_again_at_the_last_site_are_a_note() -> None:
    x = noise(200, 30).double()
    stream = Stream.of({"a": 0.01 * x + 1.0, "b": x})
    assert_raised(checked(SND023(), stream), "note")
