import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from sonde.core.errors import InputError
from sonde.stats.shrinkage import check_shrinkage, inverse_root, oas_weight

ROWS = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 32)))


def _scatter(x):
    z = x - x.mean(0)
    return z.T @ z


@pytest.mark.truth("sklearn.covariance.OAS")
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_oas_weight_matches_sklearn(scale):
    x = ROWS * torch.linspace(0.1, 3.0, 32) * scale
    weight = oas_weight(_scatter(x) / 200, 200)
    assert float(weight) == pytest.approx(OAS().fit(x.numpy()).shrinkage_, rel=1e-10)


@pytest.mark.truth("numpy.linalg.inv")
def test_whitened_square_is_the_quadratic_form():
    x = ROWS @ torch.diag(torch.linspace(0.5, 2.0, 32, dtype=torch.float64))
    metric = inverse_root(_scatter(x), 200, 0.25)
    covariance = _scatter(x).numpy() / 200
    mixed = 0.75 * covariance + 0.25 * np.trace(covariance) / 32 * np.eye(32)
    want = np.einsum("nd,de,ne->n", x.numpy(), np.linalg.inv(mixed), x.numpy())
    np.testing.assert_allclose(metric.whiten(x).square().sum(1).numpy(), want, rtol=1e-10)


@pytest.mark.truth("the same rows before their units were scaled by powers of two")
def test_badly_scaled_units_cost_no_digits():
    x = ROWS @ torch.diag(torch.linspace(0.5, 2.0, 32, dtype=torch.float64))
    x = x + x.roll(1, 1)  # correlated
    scale = 2.0 ** torch.linspace(-8, 8, 32, dtype=torch.float64).round()
    want = inverse_root(_scatter(x), 200, 0.0).whiten(x).square().sum(1)
    metric = inverse_root(_scatter(x * scale), 200, 0.0)
    torch.testing.assert_close(metric.whiten(x * scale).square().sum(1), want, rtol=1e-12, atol=0.0)


def test_directions_without_variance_are_left_out_not_divided_by():
    x = torch.cat([ROWS[:, :4], ROWS[:, :4] * 2.0], dim=1)
    metric = inverse_root(_scatter(x), 200, 0.0)
    assert metric.rank == 4
    assert metric.null.shape == (8, 4)
    off = torch.zeros(1, 8, dtype=torch.float64)
    off[0, 0], off[0, 4] = 2.0, -1.0
    assert float(metric.null_energy(off)) == pytest.approx(1.0, abs=1e-9)
    assert float(metric.null_energy(x[:1])) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.truth("brute force over weights of the expected squared error, by simulation")
def test_oas_weight_of_variances_minimises_the_risk():
    true = torch.linspace(0.8, 1.2, 64, dtype=torch.float64)
    draws = torch.randn(
        400, 50, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    variance = (draws * true.sqrt()).square().mean(1)
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    mixed = (1 - grid)[:, None, None] * variance + grid[:, None, None] * variance.mean(1, True)
    best = grid[(mixed - true).square().mean((1, 2)).argmin()]
    weight = torch.stack([oas_weight(v, 50) for v in variance]).mean()
    assert abs(float(weight - best)) < 0.1


def test_wrong_shrinkage_is_named():
    with pytest.raises(
        InputError, match=r"Owner: expected shrinkage 'oas' or a number in \[0, 1\]"
    ):
        check_shrinkage("Owner", 1.5)
