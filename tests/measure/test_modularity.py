import numpy as np
import pytest
import torch

import independent_information
from sonde.core.errors import InputError
from sonde.measure import Modularity, modularity
from sonde.measure.modularity import of_latents


@pytest.mark.truth("squares of all information but the largest, one latent at a time")
def test_known_values():
    table = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64).T
    scores = of_latents(table)
    want = independent_information.modularity(table.T)
    np.testing.assert_allclose(scores, want, rtol=1e-9)


@pytest.mark.truth("closed form: a latent that knows two of ten factors alike")
def test_two_factors_of_ten():
    bits = torch.cartesian_prod(*[torch.arange(2.0)] * 10)
    latents = torch.stack([2 * bits[:, 0] + bits[:, 1], bits[:, 5]], 1)
    result = modularity(latents, bits, n_bins=4)
    np.testing.assert_allclose(result.scores, [1 - 1 / 9, 1.0], atol=1e-12)


@pytest.mark.truth("the mixed latents of planted ones")
def test_mixing_latents_lowers_it_and_unrelated_ones_give_the_null():
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 4, (800, 3)).astype(float)
    noise = 0.2 * rng.standard_normal((800, 3))
    own, mixed = (
        modularity(factors + noise, factors),
        modularity(factors @ np.ones((3, 3)) + noise, factors),
    )
    assert own.value > 0.95 > 0.6 > mixed.value
    free = modularity(rng.standard_normal((800, 3)), factors)
    null = float(torch.as_tensor(free.null))
    assert abs(free.value - null) < 4 * float(torch.as_tensor(free.se))
    assert abs(own.value - null) > 10 * float(torch.as_tensor(own.se))


def test_a_constant_latent_is_left_out_and_nothing_known_is_dead():
    factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    latents = torch.cat([factors, torch.ones(16, 1)], 1)
    assert modularity(latents, factors).value == pytest.approx(1.0)
    result = modularity(torch.ones(16, 2), factors)
    assert np.isnan(result.value)
    assert "dead" in result.flags


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="Modularity: expected n_bins of at least 2"):
        Modularity(n_bins=0)
    with pytest.raises(InputError, match="Modularity: expected at least two factors, got 1"):
        modularity(torch.rand(50, 3), torch.zeros(50, 1))
