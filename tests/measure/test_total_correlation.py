import math

import numpy as np
import pytest
import torch

from fixture_rows import X
from sonde.measure import mutual_information, total_correlation


def rows_with(covariance, n=4000):
    """Return rows whose covariance is exactly this one."""
    x = np.random.default_rng(0).standard_normal((n, len(covariance)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / n)).T
    return x @ np.linalg.cholesky(np.array(covariance)).T


@pytest.mark.truth("closed form of Gaussians")
@pytest.mark.parametrize(
    ("covariance", "want"),
    [
        ([[1.0, 0.9], [0.9, 1.0]], 0.8303656034),
        ([[4.0, 1.0, 0.5], [1.0, 1.0, 0.25], [0.5, 0.25, 0.25]], 0.3465735903),
    ],
)
def test_known_values(covariance, want):
    found = total_correlation(rows_with(covariance), debias=False)
    assert float(found) == pytest.approx(want, rel=1e-8)


@pytest.mark.truth("numpy's determinant of the correlations")
def test_from_the_correlations():
    want = -0.5 * np.linalg.slogdet(np.corrcoef(X.numpy(), rowvar=False))[1]
    assert total_correlation(X).raw == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("the chain of Gaussian mutual information, unit by unit")
def test_sum_of_what_each_unit_tells_of_those_before():
    parts = [
        float(mutual_information(X[:, :i], X[:, i : i + 1], debias=False)) for i in (1, 2, 3, 4)
    ]
    assert total_correlation(X).raw == pytest.approx(sum(parts), rel=1e-9)


@pytest.mark.truth("simulated independent units")
def test_mean_at_independence():
    found = [
        total_correlation(np.random.default_rng(s).standard_normal((40, 12))) for s in range(60)
    ]
    values = np.array([float(f) for f in found])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert found[0].bias > 15 * values.std() / math.sqrt(len(values))


def test_a_unit_that_follows_from_others_is_infinite_and_flagged():
    found = total_correlation(torch.cat([X, X[:, :1] + X[:, 1:2]], 1))
    assert float(found) == math.inf
    assert "rank_deficient" in found.flags


def test_constant_units_take_no_part():
    found = total_correlation(torch.cat([X, torch.ones(len(X), 1)], 1))
    assert found.n_dead == 1
    assert float(found) == pytest.approx(float(total_correlation(X)), rel=1e-12)
    assert "few_rows" in total_correlation(X[:4]).flags
    few, enough = total_correlation(X[:5]), total_correlation(X[:6])
    assert math.isnan(float(few))
    assert math.isnan(few.bias)
    assert math.isfinite(float(enough))
