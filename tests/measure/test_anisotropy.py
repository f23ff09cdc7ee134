import math

import numpy as np
import pytest
import torch

from sonde.measure import anisotropy


@pytest.mark.truth("mean cosine over all pairs of unit rows")
def test_is_the_mean_cosine_of_unit_rows():
    random = np.random.default_rng(0)
    x = random.standard_normal((400, 20)) + 0.5
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    longer = x * np.exp(2.0 * random.standard_normal((400, 1)))
    longer[[3, 90]] *= 1e6  # two rows that own the variance
    want = (unit @ unit.T).mean()
    assert anisotropy(longer).value == pytest.approx(want, rel=1e-9)
    with_zeros = np.concatenate([longer, np.zeros((100, 20))])
    assert anisotropy(with_zeros).value == pytest.approx(want, rel=1e-9)


def test_one_huge_unit_is_left_out_of_the_trimmed_figure():
    x = np.random.default_rng(1).standard_normal((300, 50))
    x[:, 7] += 100.0
    result = anisotropy(x)
    assert result.value > 0.99
    assert result.trimmed < 0.05
    assert 7 in result.units
    assert result.spread_trimmed > 20 * result.spread


@pytest.mark.truth("numpy's sums over the units that are left")
@pytest.mark.parametrize(("dim", "n_left"), [(5, 3), (7, 4), (350, 346)])
def test_the_trimmed_figure_is_that_of_the_other_units(dim, n_left):
    x = 1e-3 * (np.random.default_rng(3).standard_normal((40, dim)) + np.linspace(-2, 1, dim))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    left = np.square(x.mean(0)).argsort()[:n_left]
    want = np.square(x.mean(0))[left].sum() / np.square(x).mean(0)[left].sum()
    result = anisotropy(x)
    assert len(result.units) == dim - n_left
    assert result.trimmed == pytest.approx(want, rel=1e-5)
    assert 1 / (1 + result.spread_trimmed**2) == pytest.approx(want, rel=1e-5)


@pytest.mark.truth("definition 1 / (1 + spread^2)")
def test_spread_and_cosine_agree():
    result = anisotropy(np.random.default_rng(2).standard_normal((100, 9)) + 2.0)
    assert result.value == pytest.approx(1 / (1 + result.spread**2), rel=1e-9)


@pytest.mark.truth("simulated rows about zero")
def test_null():
    draws = [np.random.default_rng(s).standard_normal((50, 200)) for s in range(20)]
    values = [float(anisotropy(x)) for x in draws]
    assert np.mean(values) == pytest.approx(anisotropy(draws[0]).null, rel=0.1)


def test_zero_rows_are_nan_and_dead():
    result = anisotropy(torch.zeros(5, 8))
    assert math.isnan(result.value)
    assert "dead" in result.flags
