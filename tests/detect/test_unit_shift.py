from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon

from detect.shift_rates import assert_right_rate, comparisons
from sonde.detect import UnitShift


def _rows(seed, n, dim=12):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def _skewed(seed, n):
    return _rows(seed, n).exp()


@pytest.mark.truth("scipy.stats.ttest_ind(equal_var=False)")
def test_means_are_welch_tests_with_holm():
    x, y = _rows(0, 40), _rows(1, 25) * 2 + 0.4
    found: Any = UnitShift(test="mean").between(x, y)
    want: Any = stats.ttest_ind(x.numpy(), y.numpy(), equal_var=False)
    np.testing.assert_allclose(found.unit_p, want.pvalue, rtol=1e-8)
    assert found.p == pytest.approx(12 * want.pvalue.min(), rel=1e-8)
    assert found.statistic == pytest.approx(np.abs(want.statistic).max(), rel=1e-8)


@pytest.mark.truth("scipy.stats.ks_2samp on values that fill one bin each")
def test_ks_is_exact_where_bins_hold_one_value():
    rng = np.random.default_rng(2)
    x, y = (2.0 ** rng.integers(-3, k, (60, 4)) for k in (3, 5))
    found: Any = UnitShift().between(x, y)
    want: list[Any] = [stats.ks_2samp(x[:, i], y[:, i], method="exact") for i in range(4)]
    np.testing.assert_allclose(found.effect, [w.statistic for w in want], rtol=1e-12)
    assert all(p >= 0.97 * w.pvalue for p, w in zip(found.unit_p.tolist(), want, strict=True))
    far = [i for i, w in enumerate(want) if w.pvalue > 1e-4]
    assert all(found.unit_p[i] < 2 * want[i].pvalue + 0.05 for i in far)


def _largest_gap(x: Any, y: Any) -> float:
    found: Any = stats.ks_2samp(x, y)
    return found.statistic


@pytest.mark.truth("scipy.stats.ks_2samp")
def test_binning_loses_less_than_the_fullest_bin():
    x, y = _rows(3, 200, 3), _rows(4, 150, 3) * 1.5
    found: Any = UnitShift().between(x, y)
    want = np.array([_largest_gap(x[:, i], y[:, i]) for i in range(3)])
    assert (found.effect.numpy() <= want + 1e-12).all()
    assert (found.effect.numpy() >= want - 0.15).all()


@pytest.mark.slow
@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
@pytest.mark.parametrize(
    ("shift", "draw"),
    [(UnitShift(), _skewed), (UnitShift(test="mean"), _rows), (UnitShift(correction="bh"), _rows)],
    ids=("ks", "mean", "bh"),
)
def test_false_alarms_are_no_more_than_promised(shift, draw):
    found = comparisons(shift, lambda seed: (draw(seed, 60), draw(10_000 + seed, 45)))
    assert_right_rate([c.p for c in found], conservative=shift.test == "ks")
    assert sum(c.p <= 0.2 for c in found) > 0


@pytest.mark.truth("planted units")
def test_the_planted_units_are_named():
    for test in ("ks", "mean"):
        y = _rows(1, 200)
        y[:, 3] += 1.5
        y[:, 7] -= 0.9
        found: Any = UnitShift(test=test).between(_rows(0, 200), y)
        assert found.moved(0.01).tolist() == [3, 7]
        assert found.p < 1e-6
        assert found.table().num_rows == 12


def test_a_widened_unit_is_seen_by_shares_alone():
    y = _rows(1, 400)
    y[:, 5] *= 3
    shares: Any = UnitShift().between(_rows(0, 400), y)
    means: Any = UnitShift(test="mean").between(_rows(0, 400), y)
    assert shares.moved().tolist() == [5]
    assert means.moved().tolist() == []


def test_constant_units_are_equal_or_infinitely_far():
    x, y = _rows(0, 30), _rows(1, 30)
    x[:, 0] = y[:, 0] = 1.0
    x[:, 1], y[:, 1] = 1.0, 1.01
    found: Any = UnitShift(test="mean").between(x, y)
    assert found.unit_p[:2].tolist() == [1.0, 0.0]
    assert found.flags == ("dead",)


@pytest.mark.truth("scipy.stats.chi2_contingency and scipy.spatial.distance.jensenshannon")
def test_divergence_of_joined_bins():
    rng = np.random.default_rng(7)
    x, y = (2.0 ** rng.integers(0, 4, (200, 3)) for _ in range(2))
    y[:, 1] = 2.0 ** rng.binomial(3, 0.3, 200)
    found: Any = UnitShift(test="js").between(x, y)
    for unit in range(3):
        counts = np.array([[(s[:, unit] == 2.0**k).sum() for k in range(4)] for s in (x, y)])
        counts = counts[:, counts.sum(0) > 0]
        want: Any = stats.chi2_contingency(counts, correction=False)
        assert float(found.unit_p[unit]) == pytest.approx(want.pvalue, rel=1e-8)
        shares = counts / counts.sum(1, keepdims=True)
        bits = jensenshannon(shares[0], shares[1], base=2) ** 2
        assert float(found.effect[unit]) == pytest.approx(bits, abs=1e-12)
    assert found.moved().tolist() == [1]


@pytest.mark.truth("scipy.stats.wasserstein_distance")
@pytest.mark.parametrize("test", ["ks", "js"])
def test_how_far_the_mass_moved(test):
    x, y = _rows(20, 400, 3), _rows(21, 300, 3) * torch.tensor([1.0, 1.0, 2.0]) + 1
    found: Any = UnitShift(test=test).between(x, y)
    for unit in range(3):
        pooled = torch.cat([x, y])[:, unit].std(correction=0)
        want = stats.wasserstein_distance(x[:, unit].numpy(), y[:, unit].numpy()) / pooled
        assert float(found.moved_by[unit]) == pytest.approx(float(want), rel=0.1)


@pytest.mark.slow
@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
def test_divergence_alarms_no_more_than_promised():
    found = comparisons(
        UnitShift(test="js"), lambda seed: (_skewed(seed, 60), _skewed(10_000 + seed, 45))
    )
    assert_right_rate([c.p for c in found], conservative=True)
    assert sum(c.p <= 0.2 for c in found) > 0
