import numpy as np
import pytest
import torch

from detect.shift_rates import assert_right_rate, comparisons
from sonde.core.errors import InputError, StateError
from sonde.detect import MMD, FourierMMD

SHIFT = FourierMMD(sigma=4.0, m=64)


def _rows(seed, n, dim=16):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


@pytest.mark.truth("exact MMD over all pairs")
def test_many_features_come_near_the_exact_distance():
    x, y = _rows(0, 100, 4), _rows(1, 80, 4) + 0.8
    found = FourierMMD(sigma=2.0, m=500).between(x, y)
    want = float(MMD(sigma=2.0, permutations=1).between(x, y))
    assert float(found) == pytest.approx(want, abs=0.02)
    assert want > 0.1


@pytest.mark.truth("the weighted chi-square's first two moments, by hand")
def test_matches_the_formula():
    x, y = _rows(0, 60, 3).numpy(), _rows(1, 40, 3).numpy() + 0.3
    weights = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    phi = [
        np.hstack([np.cos(v @ weights.numpy() / 2), np.sin(v @ weights.numpy() / 2)]) / 32**0.5
        for v in (x, y)
    ]
    delta = phi[0].mean(0) - phi[1].mean(0)
    pooled = (59 * np.cov(phi[0].T) + 39 * np.cov(phi[1].T)) / 98
    found = FourierMMD(sigma=2.0, m=32).between(x, y)
    statistic = 24 * delta @ delta
    assert found.statistic == pytest.approx(statistic, rel=1e-9)
    assert float(found) == pytest.approx(delta @ delta - np.trace(pooled) / 24, rel=1e-8)
    trace, squares = np.trace(pooled), np.trace(pooled @ pooled)
    draws = np.random.default_rng(0).chisquare(trace**2 / squares, 100_000)
    assert found.p == pytest.approx(float((draws * squares / trace > statistic).mean()), abs=0.004)


@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
def test_false_alarms_are_as_many_as_promised():
    found = comparisons(SHIFT, lambda seed: (_rows(seed, 90), _rows(10_000 + seed, 60)))
    assert_right_rate([c.p for c in found])
    values = np.array([float(c) for c in found])
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5


@pytest.mark.truth("planted shifts of mean and spread")
def test_power():
    for change in (lambda y: y + 0.4, lambda y: y * 1.3):
        found = comparisons(SHIFT, lambda s, c=change: (_rows(s, 90), c(_rows(9_000 + s, 90))), 20)
        assert np.mean([c.p <= 0.05 for c in found]) > 0.9


def test_the_width_is_found_from_the_reference_and_kept():
    side = FourierMMD(m=32).fit(_rows(0, 200))
    assert side.shift == FourierMMD(sigma=4.0, m=32)
    assert FourierMMD(m=32).between(_rows(0, 200), _rows(1, 100) * 50).p < 1e-6


def test_sides_of_other_widths_say_what_to_do():
    first, second = (FourierMMD(m=8).fit(_rows(0, 50) * s) for s in (1, 10))
    with pytest.raises(StateError, match=r"first\.shift\.fit\(rows\)"):
        first.compare(second)


def test_equal_rows_need_a_width():
    with pytest.raises(InputError, match="got a median distance of 0 over 9"):
        FourierMMD().fit(torch.ones(9, 2))
    with pytest.raises(InputError, match=r"sigma in \(0, inf\), got 0\.0"):
        FourierMMD(sigma=0.0)
