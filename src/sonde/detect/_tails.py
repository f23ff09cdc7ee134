"""Distribution-free tail bounds, for p-values too small for permutations.

A permutation p-value cannot fall below its floor, one over (number of permutations + 1). At the
floor any other valid p-value may take its place if it is smaller. At levels above the floor the
permutations decide as before, below the floor the other p-value decides: no level is exceeded.
"""

import math

import torch
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor

TILTS = 999


def beyond_floor(
    p: Float[Tensor, "test"], times: int, other: Float[Tensor, "test"]
) -> Float[Tensor, "test"]:
    """Return permutation p-values; at their minimum, the smaller of the two p-values."""
    return torch.where(is_floor(p, times), torch.minimum(p, other), p)


def is_floor(p: Float[Tensor, "test"], times: int) -> Bool[Tensor, "test"]:
    """Return which p-values are minimal: no permutation reached the observed value."""
    return p <= 1.5 / (1 + times)


def signs_tail(white: Float[Tensor, "row dim"]) -> float:
    """Return a p-value for the sum of rows with equally likely signs.

    Twice the smaller of two bounds: the first is sharp if there are many more rows than directions,
    the second if the rows agree on one direction.
    """
    return min(1.0, 2 * min(_by_moments(white), _by_halves(white)))


def _by_moments(white: Float[Tensor, "row dim"]) -> float:
    """Return ``min_a exp(-a |sum|^2 / 2) prod_j (1 - a g_j)^-1/2``.

    ``g`` are the eigenvalues of the second moments. The exponential moments of the sum are at most
    the exponential moments of a normal vector with this covariance.
    """
    tall = white if len(white) >= white.shape[1] else white.T
    g = torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0.0)
    a = torch.arange(1, TILTS + 1, dtype=g.dtype) / (TILTS + 1) / g[-1]
    log = -a * white.sum(0).square().sum() / 2 - torch.log1p(-a[:, None] * g).sum(1) / 2
    return math.exp(min(float(log.min()), 0.0))


def _by_halves(white: Float[Tensor, "row dim"]) -> float:
    """Return Hoeffding's bound on every second row's projection on the sum of the others."""
    along = white[1::2] @ white[::2].sum(0)
    total, square = float(along.sum()), float(along.square().sum())
    return math.exp(-total * total / (2 * square)) if total > 0 else 1.0


def bennett_exponent(
    total: Float[Tensor, "*time dim"], variance: Float[Tensor, "dim"], reach: Float[Tensor, "dim"]
) -> Float[Tensor, "*time dim"]:
    """Return ``-log`` of Bennett's bound on the probability that a sum reaches ``total``.

    The terms are independent, of mean 0 and at most ``reach``; their variances add up to
    ``variance``. Returns 0 if nothing varies.
    """
    u = total * reach / variance
    exponent = variance / reach.square() * ((1 + u) * torch.log1p(u) - u)
    return torch.where(variance * reach > 0, exponent, torch.zeros_like(exponent))


def subset_tail(
    gap: Float[Tensor, "dim"],
    spread: Float[Tensor, "dim"],
    reach: Float[Tensor, "dim"],
    n: tuple[int, int],
) -> Float[Tensor, "dim"]:
    """Return a bound on the probability that two random parts' means differ by ``gap``.

    All values are known: ``spread`` is their standard deviation, ``reach`` their largest distance
    from the mean, ``n`` the sizes of the parts. The smaller of two two-sided bounds is taken. The
    first treats the smaller part as drawn with replacement (Hoeffding). The second assigns each
    value to a part by a coin, and divides by the chance that the parts get these sizes.
    """
    total = gap * (n[0] * n[1] / sum(n))
    larger = max(n) / sum(n)
    drawn = bennett_exponent(total, min(n) * spread.square(), reach)
    coins = bennett_exponent(total, n[0] * n[1] / sum(n) * spread.square(), larger * reach) + float(
        binom.logpmf(n[0], sum(n), n[0] / sum(n))
    )
    return (2 * torch.exp(-torch.maximum(drawn, coins))).clamp(max=1.0)
