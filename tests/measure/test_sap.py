import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.measure import SAP, sap


def rows(n=500, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    factors = rng.integers(0, 5, (n, 3)).astype(float)
    mixing = np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0.3, 1, 0.0]])
    return factors @ mixing + noise * rng.standard_normal((n, 4)), factors


@pytest.mark.truth("numpy.corrcoef")
def test_is_the_lead_of_squared_correlations():
    latents, factors = rows()
    scores = np.corrcoef(latents.T, factors.T)[:4, 4:].T ** 2
    ordered = np.sort(scores, 1)
    result = sap(latents, factors)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-9)
    assert result.value == pytest.approx((ordered[:, -1] - ordered[:, -2]).mean(), rel=1e-9)


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws, and unrelated sides")
def test_standard_error_and_null():
    found = [sap(*rows(seed=s)) for s in range(20)]
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.7 < np.mean([float(torch.as_tensor(r.se)) for r in found]) / spread < 1.4
    free = [sap(rows(seed=s)[0], rows(seed=s + 90)[1]) for s in range(40)]
    null = float(torch.as_tensor(free[0].null))
    assert np.mean([float(r) for r in free]) == pytest.approx(null, rel=0.3)
    # squared correlations of unrelated rows fall as one over the rows less one
    latents, factors = rows(11)

    def tiled(k):
        return np.tile(latents, (k, 1)), np.tile(factors, (k, 1))

    few, many = (
        float(torch.as_tensor(sap(*tiled(k), group=np.arange(k * len(latents))).null))
        for k in (1, 10)
    )
    assert few / many == pytest.approx(109 / 10, rel=1e-6)


def test_a_constant_factor_is_flagged_and_left_out():
    latents, factors = rows()
    result = sap(latents, np.hstack([factors, np.ones((500, 1))]))
    assert "dead" in result.flags
    assert result.value == pytest.approx(sap(latents, factors).value, rel=1e-9)
    assert np.isnan(sap(latents, np.ones((500, 2))).value)


def test_one_latent_is_refused():
    with pytest.raises(InputError, match="SAP: expected at least two latents, got 1"):
        SAP().fit(torch.rand(20, 1), y=torch.rand(20, 2))
