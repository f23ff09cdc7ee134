import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sonde.stats import sparsemax


def _of(*entries):
    return sparsemax(torch.tensor([entries], dtype=torch.float64))[0]


@pytest.mark.truth("sorted by hand")
def test_by_hand():
    assert _of(1.0, 0.8, 0.1).tolist() == pytest.approx([0.6, 0.4, 0.0])
    assert _of(0.0, 0.0, 0.0, 0.0).tolist() == [0.25] * 4
    assert _of(3.0, 0.0, 0.0).tolist() == [1.0, 0.0, 0.0]
    third = [0.5 - 0.2 / 3, 0.4 - 0.2 / 3, 0.3 - 0.2 / 3, 0.0]
    assert _of(0.5, 0.4, 0.3, -2.0).tolist() == pytest.approx(third, abs=1e-12)
    assert third == pytest.approx([0.4333333, 0.3333333, 0.2333333, 0.0], abs=1e-7)
    assert _of(-7.0).tolist() == [1.0]


@pytest.mark.truth(
    "scipy.optimize.minimize: the nearest point of the simplex as a quadratic program"
)
@pytest.mark.parametrize("seed", range(6))
def test_nearest_point_of_the_simplex(seed):
    z = np.random.default_rng(seed).normal(size=6) * (0.3 + seed)
    found = minimize(
        lambda p: ((p - z) ** 2).sum(), np.full(6, 1 / 6), jac=lambda p: 2 * (p - z),
        bounds=[(0, None)] * 6, method="SLSQP", options={"ftol": 1e-16, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
    )  # fmt: skip
    np.testing.assert_allclose(_of(*z).numpy(), found.x, atol=1e-8)


@pytest.mark.truth("the published formula over all sorted entries, in numpy")
def test_entries_that_are_left_out_would_get_nothing():
    """Rows with one entry near the largest and with all of them, each by itself and together."""
    z = np.random.default_rng(0).normal(size=(40, 200)) * np.geomspace(1e-4, 10, 40)[:, None]
    u = -np.sort(-z, axis=1)
    sums, count = u.cumsum(1) - 1, np.arange(1, 201)
    kept = (count * u > sums).sum(1)
    want = np.maximum(z - (sums[np.arange(40), kept - 1] / kept)[:, None], 0)
    assert (want > 0).sum(1).min() < 3 < 150 < (want > 0).sum(1).max()
    rows = torch.from_numpy(z)
    for found in (sparsemax(rows), torch.cat([sparsemax(row[None]) for row in rows])):
        np.testing.assert_allclose(found.numpy(), want, atol=1e-12)


def test_sums_to_one_at_any_size_and_shift():
    z = torch.randn(50, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    p = sparsemax(z)
    torch.testing.assert_close(p.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(sparsemax(z + 1e6), p, rtol=0, atol=1e-8)
    assert float((p > 0).double().mean()) < 0.05
    large = sparsemax(torch.full((1, 4), 1e30))
    assert large.tolist() == [[0.25] * 4]


@pytest.mark.truth("torch.autograd.gradcheck: finite differences")
def test_gradient():
    z = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(sparsemax, z.requires_grad_())
