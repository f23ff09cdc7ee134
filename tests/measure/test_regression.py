import math

import numpy as np
import pytest
import torch

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import Regression, regression


@pytest.mark.truth("residuals of least squares in numpy")
def test_known_values():
    for x, y in ((X, Y), (Y, X)):
        want = independent_pairs.explained_variance(x, y)
        assert regression(x, y).value == pytest.approx(want, rel=1e-7)


@pytest.mark.truth("numpy.linalg.lstsq")
def test_map_is_least_squares():
    result = regression(X, Y, ridge=0.0)
    design = np.hstack([X, np.ones((60, 1))])
    want = np.linalg.lstsq(design, Y, rcond=None)[0]
    np.testing.assert_allclose(result.weight, want[:-1], atol=1e-10)
    np.testing.assert_allclose(result.bias, want[-1], atol=1e-10)


@pytest.mark.truth("an exact map")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 2e4, 2e5])
def test_a_massive_unit_hides_no_map(dtype, factor):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 30, generator=g, dtype=torch.float64)
    weight = torch.randn(30, 8, generator=g, dtype=torch.float64)
    y = x @ weight
    x[:, 7] *= factor
    result = regression(x.to(dtype), y.to(dtype))
    assert result.value == pytest.approx(1.0, abs=1e-6)
    result.weight[7] *= factor
    torch.testing.assert_close(result.weight, weight, rtol=1e-6, atol=1e-6)


@pytest.mark.truth("numpy.linalg.lstsq of the rows with the ridge below them")
def test_the_ridge_is_that_of_standardised_units():
    rows, y = X.double(), Y.double()
    scale = rows.std(0, correction=0)
    z, y = (rows - rows.mean(0)) / scale, y - y.mean(0)
    below = math.sqrt(0.1 * len(X)) * np.eye(X.shape[1])
    design, target = np.vstack([z, below]), np.vstack([y, np.zeros((X.shape[1], Y.shape[1]))])
    want = np.linalg.lstsq(design, target, rcond=None)[0] / scale.numpy()[:, None]
    np.testing.assert_allclose(regression(X, Y, ridge=0.1).weight, want, rtol=1e-9)


def test_a_constant_unit_needs_no_ridge():
    x = torch.cat([X, torch.ones(60, 1)], dim=1)
    result = regression(x, Y, ridge=0.0)
    assert result.value == pytest.approx(regression(X, Y, ridge=0.0).value, rel=1e-9)


@pytest.mark.truth("simulated unrelated rows")
def test_null_and_adjusted():
    rng = np.random.default_rng(0)
    results = [
        regression(rng.standard_normal((200, 10)), rng.standard_normal((200, 5))) for _ in range(20)
    ]
    assert np.mean([float(r) for r in results]) == pytest.approx(results[0].null, rel=0.15)
    assert np.mean([r.adjusted for r in results]) == pytest.approx(0.0, abs=0.01)
    # over targets in all directions the share is the mean over unrelated ones, exactly
    every = regression(X, torch.eye(60), ridge=0.0)
    assert every.value == pytest.approx(every.null, rel=1e-6)
    assert every.adjusted == pytest.approx(0.0, abs=1e-6)


def test_a_dead_unit_does_no_harm_and_dead_rows_are_nan():
    x = torch.cat([X, torch.zeros(60, 1)], dim=1)
    assert regression(x, Y).value == pytest.approx(regression(X, Y).value, rel=1e-6)
    result = regression(torch.zeros(60, 2), Y)
    assert math.isnan(result.value)
    assert "dead" in result.flags


def test_wrong_ridge_is_named():
    with pytest.raises(InputError, match="Regression: expected ridge of at least 0"):
        Regression(ridge=-1.0)
