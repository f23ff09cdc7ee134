import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon

from detect.shift_rates import assert_right_rate, comparisons
from sonde.detect import UnitShift
from sonde.detect._tails import subset_tail
from sonde.detect.unit_shift import _cells
from sonde.stats import LogHistogram


def _rows(seed, n, dim=12):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def _skewed(seed, n):
    return _rows(seed, n).exp()


def _sparse(seed, n, share, dim=40):
    """Return units that are off in most rows, and half normal in the others."""
    rng = np.random.default_rng(seed)
    on = rng.random((n, dim)) < share
    return torch.from_numpy(np.abs(rng.standard_normal((n, dim))) * on)


def _gap(x: Any, y: Any, axis: int) -> Any:
    return abs(x.mean(axis=axis) - y.mean(axis=axis))


@pytest.mark.truth("scipy.stats.permutation_test")
def test_means_are_permutation_tests():
    x, y = _rows(0, 40), _skewed(1, 25) - 1.2
    found: Any = UnitShift(test="mean").between(x, y)
    rng = np.random.default_rng(0)
    test: Any = stats.permutation_test  # whose argument is named rng from SciPy 1.15 on
    want = test(
        (x.numpy(), y.numpy()), _gap, n_resamples=2000, alternative="greater", random_state=rng
    )
    np.testing.assert_allclose(found.unit_p, want.pvalue, atol=0.06)
    within = (39 * x.var(0) + 24 * y.var(0)) / 63
    np.testing.assert_allclose(found.effect, _gap(x, y, 0) / within.sqrt(), rtol=1e-8)
    spread = torch.cat([x, y]).std(0, correction=0)
    errors = _gap(x, y, 0) / spread * (40 * 25) ** 0.5 / 65
    assert found.statistic == pytest.approx(65**0.5 * float(errors.max()), rel=1e-8)


@pytest.mark.truth("all choices of four of twelve, and of six")
@pytest.mark.parametrize("chosen", [4, 6])
def test_the_bound_of_means_holds_for_every_choice(chosen):
    values = np.random.default_rng(3).standard_normal((12, 3)) ** [1, 2, 6]
    sums = np.array([values[list(c)].sum(0) for c in combinations(range(12), chosen)])
    gaps = np.abs(sums / chosen - (values.sum(0) - sums) / (12 - chosen))
    spread, reach = values.std(0), np.abs(values - values.mean(0)).max(0)
    for gap in gaps[::7]:
        a, b, c = (torch.from_numpy(v) for v in (gap, spread, reach))
        bound = subset_tail(a, b, c, (chosen, 12 - chosen)).numpy()
        assert (bound >= (gaps >= gap - 1e-12).mean(0)).all()


@pytest.mark.truth("no change, by simulation: sparse and skewed units, sides of other sizes")
@pytest.mark.parametrize(
    ("test", "share", "n"),
    [
        ("mean", 0.02, (20, 300)),
        ("mean", 0.1, (8, 300)),
        ("js", 0.02, (40, 900)),
        ("js", 0.3, (40, 900)),
    ],
)
def test_sparse_units_do_not_alarm(test, share, n):
    found = comparisons(
        UnitShift(test=test),
        lambda seed: (_sparse(seed, n[0], share), _sparse(9_000 + seed, n[1], share)),
        20,
    )
    alarms = sum(c.p <= 0.05 for c in found)
    assert alarms <= stats.binom.ppf(0.999, 20, 0.05)


@pytest.mark.truth("a planted unit among sparse ones")
def test_a_moved_unit_is_named_among_sparse_ones():
    x, y = _sparse(4, 60, 0.02), _sparse(5, 1200, 0.02)
    x[:, 9], y[:, 9] = _rows(6, 60, 1)[:, 0], _rows(7, 1200, 1)[:, 0] + 2
    for test in ("mean", "js"):
        found: Any = UnitShift(test=test).between(x, y)
        assert found.moved().tolist() == [9]
    assert UnitShift(test="mean").between(x, y).p < 1e-4


@pytest.mark.essential
@pytest.mark.truth("Welch's test of all rows")
def test_a_move_too_small_for_the_sample_is_seen_in_all_rows():
    x, y = _rows(8, 8_000, 2), _rows(9, 8_000, 2) + torch.tensor([0.0, 0.15])
    found: Any = UnitShift(test="mean").between(x, y)
    assert found.moved().tolist() == [1]
    want: Any = stats.ttest_ind(x[:, 1].numpy(), y[:, 1].numpy(), equal_var=False)
    assert want.pvalue < float(found.unit_p[1]) < 1e-8
    assert float(found.adjusted[1]) == pytest.approx(2 * float(found.unit_p[1]))  # of two units


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


@pytest.mark.essential
@pytest.mark.essential
@pytest.mark.essential
@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
@pytest.mark.parametrize(
    ("shift", "draw"),
    [
        (UnitShift(), _skewed),
        (UnitShift(test="js"), _skewed),
        (UnitShift(test="mean"), _rows),
        (UnitShift(correction="bh"), _rows),
    ],
    ids=("ks", "js", "mean", "bh"),
)
def test_false_alarms_are_no_more_than_promised(shift, draw):
    found = comparisons(shift, lambda seed: (draw(seed, 60), draw(10_000 + seed, 45)))
    assert_right_rate([c.p for c in found], conservative=shift.test in ("ks", "js"))
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
    assert float(found.unit_p[0]) == 1.0
    assert 2 / math.comb(60, 30) <= float(found.unit_p[1]) < 1e-8
    assert math.isinf(float(found))
    assert found.flags == ("dead",)


@pytest.mark.truth("a planted move of twice the spread, inside one bin")
@pytest.mark.parametrize("test", ["ks", "js"])
def test_a_unit_within_one_bin_is_not_said_to_be_still(test):
    x, y = _rows(10, 200, 3), _rows(11, 200, 3)
    x[:, 1], y[:, 1] = 10 + 0.1 * x[:, 1], 10.2 + 0.1 * y[:, 1]
    x[:, 2] = y[:, 2] = 0.0
    y[:, 0] += 1
    found: Any = UnitShift(test=test).between(x, y)
    assert found.flags == ("coarse",)
    assert found.effect.isnan().tolist() == [False, True, False]
    assert found.unit_p.isnan().tolist() == [False, True, False]
    assert found.moved_by.isnan().tolist() == [False, True, False]
    assert float(found.moved_by[2]) == 0.0
    assert found.moved().tolist() == [0]
    assert float(found) == float(found.effect[0])
    alone: Any = UnitShift(test=test).between(x[:, 1:2], y[:, 1:2])
    assert math.isnan(float(alone))
    assert math.isnan(alone.p)


@pytest.mark.truth("scipy.stats.chi2_contingency and scipy.spatial.distance.jensenshannon")
def test_divergence_of_joined_bins():
    rng = np.random.default_rng(7)
    x, y = (2.0 ** rng.integers(0, 4, (200, 3)) for _ in range(2))
    y[:, 1] = 2.0 ** rng.binomial(3, 0.3, 200)
    found: Any = UnitShift(test="js").between(x, y)
    for unit in range(3):
        counts = np.array([[(s[:, unit] == 2.0**k).sum() for k in range(4)] for s in (x, y)])
        counts = counts[:, counts.sum(0) > 0]
        tests: list[Any] = [
            stats.chi2_contingency(counts, correction=False, lambda_=name)
            for name in ("pearson", "log-likelihood")
        ]
        want = max(found.pvalue for found in tests)
        assert float(found.unit_p[unit]) == pytest.approx(want, rel=1e-8)
        shares = counts / counts.sum(1, keepdims=True)
        bits = jensenshannon(shares[0], shares[1], base=2) ** 2
        assert float(found.effect[unit]) == pytest.approx(bits, abs=1e-12)
    assert found.moved().tolist() == [1]


@pytest.mark.truth("counts of the rows, one value in each bin")
def test_cells_are_joined_until_they_expect_ten_rows():
    rng = np.random.default_rng(8)
    x, y = (2.0 ** np.minimum(rng.geometric(0.3, (n, 30)), 20) for n in (50, 400))
    x[:, 0], y[:, 0] = 1.0, 2.0 ** (np.arange(400) < 60)
    a, b = (LogHistogram().observe(torch.from_numpy(s)) for s in (x, y))
    pooled = (a.counts + b.counts) / 450
    cell = _cells(pooled.double(), 50)
    expected = torch.zeros(30, 25).scatter_add_(1, cell, pooled * 50)
    assert ((expected == 0) | (expected >= 10 - 1e-4)).all()
    assert (cell.diff(dim=1) >= 0).all()
    assert int(cell[1:].max()) >= 2
    found: Any = UnitShift(test="js").between(x, y)
    assert float(found.unit_p[0]) == 1.0


@pytest.mark.truth("scipy.stats.wasserstein_distance")
@pytest.mark.parametrize("test", ["ks", "js"])
def test_how_far_the_mass_moved(test):
    x, y = _rows(20, 400, 3), _rows(21, 300, 3) * torch.tensor([1.0, 1.0, 2.0]) + 1
    found: Any = UnitShift(test=test).between(x, y)
    for unit in range(3):
        pooled = torch.cat([x, y])[:, unit].std(correction=0)
        want = stats.wasserstein_distance(x[:, unit].numpy(), y[:, unit].numpy()) / pooled
        assert float(found.moved_by[unit]) == pytest.approx(float(want), rel=0.1)


def test_units_beyond_the_bins_are_flagged():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 3, generator=draw, dtype=torch.float64)
    for scale, flagged in ((1.0, False), (1e-9, False), (1e-14, True), (1e9, True)):
        found = UnitShift().between(x * scale, y.abs() * scale)
        assert ("clipped" in found.flags) == flagged
        assert "clipped" not in UnitShift("mean").between(x * scale, y * scale).flags
