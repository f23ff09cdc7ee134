import math

import numpy as np
import pytest
import torch

import independent_spectra
from measure.digits import DIGITS, NAMES
from sonde.core.errors import InputError
from sonde.measure import rate_reduction


@pytest.mark.truth("singular values of the unit rows of each class in numpy")
def test_known_values():
    label = np.repeat(np.arange(4), 10)
    rows = np.eye(8)[label]
    result = rate_reduction(rows, label, eps2=0.01)
    want = independent_spectra.rate_reduction(rows, label, 0.01)
    assert result.value == pytest.approx(want, rel=1e-9)
    assert result.whole == pytest.approx(independent_spectra.coding_rate(rows, 0.01), rel=1e-9)
    assert result.flags == ()
    digits = rate_reduction(DIGITS, NAMES, eps2=0.25)
    want = independent_spectra.rate_reduction(DIGITS, NAMES, 0.25)
    assert digits.value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("labels that say nothing, shuffled")
@pytest.mark.parametrize("eps2", [0.05, 0.5])
def test_null(eps2):
    shuffled = [
        rate_reduction(DIGITS, np.random.default_rng(i).permutation(NAMES), eps2=eps2)
        for i in range(2)
    ]
    null = float(torch.as_tensor(rate_reduction(DIGITS, NAMES, eps2=eps2).null))
    assert null == pytest.approx(np.mean([float(r) for r in shuffled]), rel=0.08)


@pytest.mark.truth("the spread over fresh draws")
def test_error():
    rng = np.random.default_rng(0)
    label, group = np.tile(np.arange(3), 100), np.arange(300) // 3
    means = 2 * np.eye(3, 5)[label]
    found = [rate_reduction(means + rng.standard_normal((300, 5)), label) for _ in range(20)]
    sd = np.std([float(r) for r in found], ddof=1)
    assert np.mean([float(torch.as_tensor(r.se)) for r in found]) / sd == pytest.approx(1, abs=0.4)
    alike = (means + rng.standard_normal((100, 1, 5)).repeat(3, 1).reshape(300, 5), label)
    errors = [float(torch.as_tensor(rate_reduction(*alike, group=g).se)) for g in (group, None)]
    assert errors[0] > 1.2 * errors[1]


def test_rows_left_out_or_dead():
    x, label = [[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]], [0, 1, -1]
    result = rate_reduction(x, label, eps2=1.0)
    assert result.value == pytest.approx(math.log(2) - math.log(3) / 2)
    assert "unlabelled" in result.flags
    dead = rate_reduction(np.zeros((4, 2)), [0, 0, 1, 1])
    assert math.isnan(float(dead))
    assert "dead" in dead.flags


def test_one_class_is_an_error():
    with pytest.raises(InputError, match="RateReduction: expected at least two classes, got 1"):
        rate_reduction(DIGITS[:5], [0] * 5)
