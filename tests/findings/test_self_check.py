import pytest
import torch

from findings._nets import deep_relu, noise, tensors
from sonde.findings.self_check import TAU, difference, self_check


@pytest.mark.truth("rms of the noise over the standard deviation of the rows")
def test_difference_is_noise_over_spread() -> None:
    a = noise(500, 20).double()
    b = a + 0.01 * noise(500, 20, seed=1).double()
    assert difference(a, b, 2.0**-24) == pytest.approx(0.01, rel=0.05)


def test_one_huge_unit_does_not_hide_the_others() -> None:
    a = noise(500, 20).double()
    a[:, 0] *= 1e4
    b = a.clone()
    b[:, 1:] += 0.1 * noise(500, 19, seed=1).double()
    assert difference(a, b, 2.0**-24) == pytest.approx(0.1, rel=0.1)


def test_rounding_of_rows_that_hardly_differ_is_no_difference() -> None:
    a = 1.0 + 1e-7 * noise(500, 20).double()
    b = a + 6e-8 * noise(500, 20, seed=1).double().sign()
    assert difference(a, b, 2.0**-24) < TAU


def test_identical_readings_and_rows_that_are_not_finite() -> None:
    a = noise(10, 4).double()
    assert difference(a, a.clone(), 2.0**-24) == 0.0
    b = a.clone()
    b[3, 1] = torch.nan
    assert difference(b, b.clone(), 2.0**-24) == 0.0


def test_a_deep_net_that_squeezes_rows_is_stable() -> None:
    found = self_check(tensors(deep_relu(20, 64, None), noise(40, 64)))
    assert found.repeat is not None
    assert found.repeat.worst == 0
    assert found.company is not None
    assert found.company.worst < found.tau
    assert found.reasons["right"] == "inputs are no texts"


def test_random_state_is_left_as_it_was() -> None:
    stream = tensors(deep_relu(2, 16, None), noise(40, 16))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    self_check(stream)
    assert torch.equal(torch.rand(4), expected)
