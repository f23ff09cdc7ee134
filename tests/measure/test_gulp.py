import numpy as np
import pytest
import torch

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import GULP, cca, gulp


@pytest.mark.truth("least squares for one target of each row")
def test_known_values():
    for ridge in (0.0, 0.1):
        want = independent_pairs.gulp(X, Y, ridge)
        assert gulp(X, Y, ridge=ridge).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("the largest squared difference of ridge predictions over unit targets, by rows")
def test_is_the_mean_over_all_targets_of_differing_predictions():
    x, y = (rows.numpy() - rows.numpy().mean(0) for rows in (X, Y))
    n = len(x)

    def hat(z):
        return z @ np.linalg.inv(z.T @ z / n + 0.1 * np.eye(z.shape[1])) @ z.T / n

    want = np.square(hat(x) - hat(y)).sum()
    assert gulp(X, Y, ridge=0.1).value == pytest.approx(want, rel=1e-9)
    near = gulp(X, X + 0.1 * torch.randn(X.shape, generator=torch.Generator().manual_seed(0)))
    assert 0 < near.distance < 1
    assert near.distance**2 == pytest.approx(float(near), rel=1e-9)


def test_without_ridge_it_counts_canonical_correlations():
    squares = float(cca(X, Y).correlations.square().sum())
    assert gulp(X, Y).value == pytest.approx(9 - 2 * squares, rel=1e-9)


@pytest.mark.truth("simulated unrelated rows")
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_null(ridge):
    rng = np.random.default_rng(0)
    found = [
        gulp(rng.standard_normal((150, 6)), rng.standard_normal((150, 4)), ridge=ridge)
        for _ in range(16)
    ]
    mean = np.mean([float(r) for r in found])
    assert mean == pytest.approx(np.mean([float(torch.as_tensor(r.null)) for r in found]), rel=0.02)


def test_a_constant_and_a_copied_unit_do_no_harm():
    x = torch.cat([X, torch.ones(60, 1), X[:, :1]], dim=1)
    assert gulp(x, Y).value == pytest.approx(7.4264921861, rel=1e-6)


def test_wrong_ridge_is_named():
    with pytest.raises(InputError, match="GULP: expected ridge of at least 0"):
        GULP(ridge=-1.0)
