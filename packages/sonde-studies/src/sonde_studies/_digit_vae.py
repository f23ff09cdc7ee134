"""A variational autoencoder of ten latents on digits, trained at a weight of the divergence."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde_studies._layers import BATCH, PIXELS
from sonde_studies.arms import note
from sonde_studies.worlds.learning import drawn

LATENTS, WIDTH, RATE, PIXEL_NOISE = 10, 128, 2e-3, 0.3


class Posterior(NamedTuple):
    """Means and logarithms of variances of each row's latents."""

    mu: Float[Tensor, "row latent"]
    log_variance: Float[Tensor, "row latent"]

    def sample(self, draw: torch.Generator) -> Float[Tensor, "row latent"]:
        """Return a code of each row."""
        noise = torch.randn(self.mu.shape, generator=draw)
        return self.mu + (self.log_variance / 2).exp() * noise

    def divergence(self) -> Float[Tensor, ""]:
        """Return the divergence from a standard normal prior in nats, summed over rows."""
        return 0.5 * (self.mu.square() + self.log_variance.expm1() - self.log_variance).sum()


class DigitVAE(nn.Module):
    """Dense nets from pixels to a posterior, and from codes to pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * LATENTS)
        )
        self.decode = nn.Sequential(nn.Linear(LATENTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, PIXELS))

    def posterior(self, x: Float[Tensor, "row pixel"]) -> Posterior:
        """Return the posterior of each row."""
        return Posterior(*self.encode(x).chunk(2, 1))


@torch.enable_grad()
def trained_vae(x: Float[Tensor, "row pixel"], beta: float, seed: int, steps: int) -> DigitVAE:
    """Train by the squared error at a fixed noise of pixels, and ``beta`` times the divergence."""
    net, draw = drawn(DigitVAE, seed), torch.Generator().manual_seed(seed)
    note(rows=len(x))
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(steps):
        rows = x[torch.randint(len(x), (BATCH,), generator=draw)]
        posterior = net.posterior(rows)
        said = net.decode(posterior.sample(draw))
        error = functional.mse_loss(said, rows, reduction="sum") / (2 * PIXEL_NOISE**2)
        optimiser.zero_grad()
        ((error + beta * posterior.divergence()) / len(rows)).backward()
        optimiser.step()
    return net.eval()
