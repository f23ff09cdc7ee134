"""Bounds of tails under every distribution: what goes on where permutations are used up.

A permutation p-value cannot fall below one over one more than their number. Where it stands there,
any other valid p-value may take its place if it is smaller: at levels above, the permutations
decide as before, at levels below the other one does, so neither level is exceeded.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TILTS = 999


def beyond_floor(
    p: Float[Tensor, "test"], times: int, other: Float[Tensor, "test"]
) -> Float[Tensor, "test"]:
    """Return permutation p-values; where they are as small as can be, the smaller of both."""
    return torch.where(is_floor(p, times), torch.minimum(p, other), p)


def is_floor(p: Float[Tensor, "test"], times: int) -> Bool[Tensor, "test"]:
    """Return which p-values no permutation has reached."""
    return p <= 1.5 / (1 + times)


def signs_tail(white: Float[Tensor, "row dim"]) -> float:
    """Return a p-value for the sum of rows that are as likely with the other sign.

    Twice the smaller of two: one is sharp where rows are many more than directions, the other
    where the rows agree on one.
    """
    return min(1.0, 2 * min(_by_moments(white), _by_halves(white)))


def _by_moments(white: Float[Tensor, "row dim"]) -> float:
    """Return ``min_a exp(-a |sum|^2 / 2) prod_j (1 - a g_j)^-1/2``.

    With ``g`` the eigenvalues of the second moments: the sum has no larger exponential moments than
    a normal one of that covariance.
    """
    g = torch.linalg.eigvalsh(white.T @ white).clamp(min=0.0)
    a = torch.arange(1, TILTS + 1, dtype=g.dtype) / (TILTS + 1) / g[-1]
    log = -a * white.sum(0).square().sum() / 2 - torch.log1p(-a[:, None] * g).sum(1) / 2
    return math.exp(min(float(log.min()), 0.0))


def _by_halves(white: Float[Tensor, "row dim"]) -> float:
    """Return Hoeffding's bound for every second row's part along the sum of the others."""
    along = white[1::2] @ white[::2].sum(0)
    total, square = float(along.sum()), float(along.square().sum())
    return math.exp(-total * total / (2 * square)) if total > 0 else 1.0
