import math

import numpy as np
import pytest
import torch

from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import Regression, regression


@pytest.mark.truth("digits computed independently from the definition")
def test_known_values():
    assert regression(X, Y).value == pytest.approx(0.1969781735, rel=1e-6)
    assert regression(Y, X).value == pytest.approx(0.1576257209, rel=1e-6)


@pytest.mark.truth("numpy.linalg.lstsq")
def test_map_is_least_squares():
    result = regression(X, Y, ridge=0.0)
    design = np.hstack([X, np.ones((60, 1))])
    want = np.linalg.lstsq(design, Y, rcond=None)[0]
    np.testing.assert_allclose(result.weight, want[:-1], atol=1e-10)
    np.testing.assert_allclose(result.bias, want[-1], atol=1e-10)


@pytest.mark.truth("simulated unrelated rows")
def test_null_and_adjusted():
    rng = np.random.default_rng(0)
    results = [
        regression(rng.standard_normal((200, 10)), rng.standard_normal((200, 5))) for _ in range(20)
    ]
    assert np.mean([float(r) for r in results]) == pytest.approx(results[0].null, rel=0.15)
    assert np.mean([r.adjusted for r in results]) == pytest.approx(0.0, abs=0.01)


def test_a_dead_unit_does_no_harm_and_dead_rows_are_nan():
    x = torch.cat([X, torch.zeros(60, 1)], dim=1)
    assert regression(x, Y).value == pytest.approx(regression(X, Y).value, rel=1e-6)
    result = regression(torch.zeros(60, 2), Y)
    assert math.isnan(result.value)
    assert "dead" in result.flags


def test_wrong_ridge_is_named():
    with pytest.raises(InputError, match="Regression: expected a ridge of at least 0"):
        Regression(ridge=-1.0)
