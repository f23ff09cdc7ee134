import math

import numpy as np
import pytest
import torch

import independent_information
from sonde.core.errors import InputError
from sonde.measure import ActiveVariables, active_variables


@pytest.mark.truth("correlations of codes one deviation to either side of their means")
def test_known_correlation_of_sampled_codes():
    base = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    first, other = base.T
    mu = torch.stack([0.01 * first, 0.9 * first + math.sqrt(1 - 0.81) * other], 1)
    logvar = torch.tensor([[1.0, 0.01]], dtype=torch.float64).log().expand(4, 2)
    result = active_variables(mu, logvar)
    want = independent_information.sampled_correlation(mu, logvar.exp())
    assert float(result.mean_correlation[0, 1]) == pytest.approx(0.9, rel=1e-12)
    assert float(result.sampled_correlation[0, 1]) == pytest.approx(want[0, 1], rel=1e-9)


@pytest.mark.truth("codes drawn around the means, and torch's divergence of normals")
def test_agrees_with_drawn_codes():
    rng = np.random.default_rng(0)
    mu = rng.standard_normal((4000, 3)) @ np.array([[1, 0.8, 0], [0, 0.5, 0], [0, 0, 0.02]])
    logvar = np.array([-3.0, -1.0, 0.0]) + 0.3 * rng.standard_normal((4000, 3))
    result = active_variables(mu, logvar)
    codes = mu[:, None] + np.exp(logvar / 2)[:, None] * rng.standard_normal((4000, 50, 3))
    drawn = np.corrcoef(codes.reshape(-1, 3).T)
    np.testing.assert_allclose(result.sampled_correlation, drawn, atol=0.01)
    posterior = torch.distributions.Normal(
        torch.from_numpy(mu), torch.from_numpy(np.exp(logvar / 2))
    )
    prior = torch.distributions.Normal(torch.zeros(3).double(), torch.ones(3).double())
    kl = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(result.kl_nats, kl.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.on, (kl >= 0.05).double().mean(0))


@pytest.mark.truth("planted latents")
def test_kinds():
    mu = torch.zeros(100, 4)
    mu[:, 0] = torch.linspace(1, 2, 100)
    mu[:50, 1] = 2.0
    mu[:4, 2] = 2.0
    result = active_variables(mu, torch.zeros(100, 4))
    assert result.kind.tolist() == [2, 1, 0, 0]
    assert (result.value, result.n_mixed, result.n_passive, result.n_moving) == (1.0, 1, 2, 3)
    assert "dead" in result.flags
    prior = active_variables(torch.zeros(9, 2), torch.zeros(9, 2))
    assert prior.value == prior.null == 0.0


def test_wrong_parameters_are_named():
    with pytest.raises(InputError, match="ActiveVariables: expected kl_nats above 0"):
        ActiveVariables(kl_nats=0.0)
    with pytest.raises(InputError, match=r"ActiveVariables: expected threshold in \(0\.5, 1\]"):
        ActiveVariables(threshold=0.3)
