"""A latent variable given a context."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from sonde.core.errors import InputError
from sonde.layers import ConditionalLatent


def made():
    layer = ConditionalLatent(4, 3, 2, hidden=6).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("torch's own divergence of normal distributions")
def test_divergence():
    layer, x, y = made(), drawn(7, 4), drawn(7, 2, seed=1)
    normal = [
        Normal(mean, (log_variance / 2).exp())
        for mean, log_variance in (layer.moments(x, y), layer.moments(x))
    ]
    torch.testing.assert_close(layer.kl(x, y), kl_divergence(normal[0], normal[1]).sum(1))


@pytest.mark.truth("mean and standard deviation of many draws")
@torch.no_grad()
def test_draws_are_of_the_prior_or_of_the_posterior():
    layer, x, y = made(), drawn(1, 4), drawn(1, 2, seed=1)
    noise = drawn(20_000, 3, seed=2)
    for target in (None, y):
        mean, log_variance = layer.moments(x, target)
        many = None if target is None else target.expand(20_000, -1)
        draws = layer(x.expand(20_000, -1), many, noise)
        spread = (log_variance[0] / 2).exp()
        assert float(((draws.mean(0) - mean[0]) / spread).abs().max()) < 0.03
        torch.testing.assert_close(draws.std(0), spread, rtol=0.03, atol=0)
        torch.testing.assert_close(layer(x, target), mean)


def test_it_learns_two_answers_to_one_input():
    """Answers are -1 or 1; draws of the prior give both, a mean would give 0."""
    torch.manual_seed(0)
    layer = ConditionalLatent(1, 1, 1)
    decoder = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    adam = torch.optim.Adam([*layer.parameters(), *decoder.parameters()], lr=1e-2)
    x, y = torch.zeros(64, 1), torch.ones(64, 1)
    y[::2] = -1
    for _ in range(300):
        z = layer(x, y, torch.randn(64, 1))
        loss = ((decoder(z) - y).square().sum(1) / 0.1 + layer.kl(x, y)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        draws = decoder(layer(torch.zeros(500, 1), noise=torch.randn(500, 1)))
    assert 0.3 < float((draws > 0.5).float().mean()) < 0.6
    assert 0.3 < float((draws < -0.5).float().mean()) < 0.6


def test_widths_below_one_are_refused():
    with pytest.raises(InputError, match="widths of at least 1, got context=4, width=0"):
        ConditionalLatent(4, 0, 2)
