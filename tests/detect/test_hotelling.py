from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from detect.shift_rates import assert_right_rate, comparisons
from sonde.core.errors import InputError
from sonde.detect import Hotelling


def _rows(seed, n, dim=5):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


@pytest.mark.truth("scipy.stats.ttest_ind")
def test_one_unit_is_the_t_test():
    x, y = _rows(0, 40, 1), _rows(1, 25, 1) * 1.3 + 0.5
    found: Any = Hotelling().between(x, y)
    want: Any = stats.ttest_ind(x.numpy()[:, 0], y.numpy()[:, 0])
    assert found.p == pytest.approx(want.pvalue, rel=1e-9)
    assert found.statistic == pytest.approx(want.statistic**2, rel=1e-9)


@pytest.mark.truth("numpy.linalg.inv and scipy.stats.f")
def test_matches_the_formula():
    x, y = _rows(0, 60) @ _rows(9, 5), _rows(1, 45) @ _rows(9, 5) + 0.4
    a, b = x.numpy(), y.numpy()
    delta = b.mean(0) - a.mean(0)
    pooled = (59 * np.cov(a.T) + 44 * np.cov(b.T)) / 103
    square = 60 * 45 / 105 * delta @ np.linalg.inv(pooled) @ delta
    found: Any = Hotelling().between(x, y)
    assert found.statistic == pytest.approx(square, rel=1e-9)
    want = stats.f.sf(square * (105 - 5 - 1) / (5 * 103), 5, 99)
    assert found.p == pytest.approx(want, rel=1e-8)
    np.testing.assert_allclose(found.axis, np.linalg.inv(pooled) @ delta, rtol=1e-8)
    assert found.sides == (60, 45)


@pytest.mark.truth("the F distribution of normal rows, by simulation")
def test_false_alarms_are_as_many_as_promised_and_the_null_is_the_mean():
    found = comparisons(Hotelling(), lambda seed: (_rows(seed, 30), _rows(10_000 + seed, 25)))
    assert_right_rate([c.p for c in found])
    values = np.array([float(c) for c in found])
    assert abs(values.mean() - found[0].null) < 4 * values.std() / len(values) ** 0.5


@pytest.mark.truth("a planted shift of the mean")
def test_power():
    found = comparisons(
        Hotelling(), lambda seed: (_rows(seed, 60), _rows(9_000 + seed, 60) + 0.5), 50
    )
    assert np.mean([c.p < 0.05 for c in found]) > 0.9


def test_unchanged_by_an_invertible_map():
    x, y, m = _rows(2, 50), _rows(3, 40) + 0.2, _rows(4, 5)
    a, b = Hotelling().between(x, y), Hotelling().between(x @ m + 7, y @ m + 7)
    assert float(b) == pytest.approx(float(a), rel=1e-6)
    assert b.p == pytest.approx(a.p, rel=1e-6)


def test_a_constant_unit_is_left_out_and_a_moved_constant_is_infinitely_far():
    x, y = _rows(0, 50), _rows(1, 50)
    x[:, 0] = y[:, 0] = 2.0
    same = Hotelling().between(x, y)
    assert same.flags == ("rank_deficient",)
    assert same.p == pytest.approx(Hotelling().between(x[:, 1:], y[:, 1:]).p, rel=1e-6)
    y[:, 0] = 3.0
    moved = Hotelling().between(x, y)
    assert (float(moved), moved.p) == (float("inf"), 0.0)


def test_fewer_rows_than_dimensions_say_nothing():
    found: Any = Hotelling().between(_rows(0, 4, 9), _rows(1, 4, 9))
    assert "few_rows" in found.flags
    assert np.isnan(found.p)


def test_one_row_is_refused():
    with pytest.raises(InputError, match="Hotelling: expected at least 2 rows, got 1"):
        Hotelling().between(_rows(0, 5), _rows(1, 1))
