"""Parts of a Gaussian code's rate, estimated from the mixture of a batch's rows."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LOG_TWO_PI = math.log(2 * math.pi)


def latent_parts(
    mean: Float[Tensor, "row dim"],
    log_variance: Float[Tensor, "row dim"],
    z: Float[Tensor, "row dim"],
    groups: Sequence[int],
    own: bool = True,
) -> dict[str, Tensor]:
    """Return the parts of a code's divergence from a standard normal, in nats per row.

    ``mi`` is ``E[ln q(z|x) - ln q(z)]``, ``tc`` is ``E[ln q(z) - sum_g ln q(z_g)]``, ``each`` is
    ``E[sum_g ln q(z_g) - ln p(z)]``; the three add up to ``E[ln q(z|x) - ln p(z)]`` exactly.
    ``posterior`` is ``E ln q(z|x)``, ``prior`` is ``-E ln p(z)``.

    Parameters
    ----------
    mean, log_variance, z : Float[Tensor, "row dim"]
        Mean and logarithm of the variance of each row's code, and one draw from it.
    groups : sequence of int
        Widths of the segments ``g``.
    own : bool, default=True
        Whether the mixture ``q(z)`` holds the row's own component.
    """
    n = len(z)
    gap = (z[:, None] - mean[None]).square() * (-log_variance)[None].exp()
    density = -(gap + log_variance[None] + LOG_TWO_PI) / 2  # (row, component, dim)
    posterior = density.diagonal().sum(0)
    if not own:
        itself = torch.eye(n, dtype=torch.bool, device=z.device)
        density = density.masked_fill(itself[..., None], -torch.inf)
    size = math.log(n if own else n - 1)
    whole = density.sum(2).logsumexp(1) - size
    parts = [part.sum(2).logsumexp(1) - size for part in density.split(list(groups), 2)]
    marginal = torch.stack(parts).sum(0)
    prior = -(z.square() + LOG_TWO_PI).sum(1) / 2
    return {
        "mi": (posterior - whole).mean(),
        "tc": (whole - marginal).mean(),
        "each": (marginal - prior).mean(),
        "posterior": posterior.mean(),
        "prior": -prior.mean(),
    }
