"""The posterior of an autoencoder against torch's distributions, and its training."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sonde_studies._digit_vae import LATENTS, PIXELS, Posterior, trained_vae


@pytest.mark.truth("torch's divergence of normal distributions")
def test_divergence_and_codes_are_those_of_a_normal_posterior():
    draw = torch.Generator().manual_seed(0)
    posterior = Posterior(*torch.randn(2, 5, 3, generator=draw))
    law = Normal(posterior.mu, (posterior.log_variance / 2).exp())
    expected = kl_divergence(law, Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(posterior.divergence(), expected)
    codes = torch.stack([posterior.sample(draw) for _ in range(4000)])
    torch.testing.assert_close(codes.mean(0), law.mean, atol=0.15, rtol=0)
    torch.testing.assert_close(codes.std(0), law.stddev, atol=0, rtol=0.1)


@torch.no_grad()
def test_a_larger_weight_brings_the_posterior_nearer_to_the_prior():
    x = torch.rand(200, PIXELS, generator=torch.Generator().manual_seed(1)).round()
    nets = [trained_vae(x, beta, 0, 150) for beta in (0.1, 30.0)]
    assert nets[0].posterior(x).mu.shape == (200, LATENTS)
    near, far = (float(net.posterior(x).divergence()) / 200 for net in nets[::-1])
    assert near < far / 5
    assert torch.equal(trained_vae(x, 0.1, 0, 3).encode(x), trained_vae(x, 0.1, 0, 3).encode(x))
