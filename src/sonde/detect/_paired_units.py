"""P-values of units where both sides are the same rows, from what changes inside pairs."""

import torch
from jaxtyping import Float
from scipy.special import bdtrc, stdtr
from torch import Tensor

from sonde.detect._sides import TwoSamples
from sonde.detect._tails import beyond_floor

TIMES = 999
BORDERS = 15
UNITS_AT_ONCE = 64


def paired_means(pairs: TwoSamples) -> Float[Tensor, "dim"]:
    """Return Student's two-sided p-value of each unit's differences."""
    gap = pairs.y - pairs.x
    n, mean = len(gap), gap.mean(0)
    error = ((gap - mean).square().sum(0) / (n * (n - 1))).sqrt()
    t = torch.where(mean == 0, torch.zeros_like(mean), mean.abs() / error)
    return torch.from_numpy(2 * stdtr(n - 1, -t.numpy()))


def paired_shares(pairs: TwoSamples) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return p-values of each unit's distribution, plain and adjusted for the number of units.

    A unit's statistic is the largest standardised difference of the shares of both sides below 15
    quantiles of the pooled rows; its null changes the sides of pairs at random. The adjusted
    p-value compares with the largest statistic of all units under the same exchanges. Where no
    exchange reaches, McNemar's exact test at the clearest of the 15 goes on, times 15 and, for the
    adjusted one, the number of units.
    """
    signs = torch.cat([torch.ones(1, len(pairs.x)), pairs.signs(TIMES).float()])
    found = [
        _statistics(pairs.x[:, part], pairs.y[:, part], signs)
        for part in torch.arange(pairs.x.shape[1]).split(UNITS_AT_ONCE)
    ]
    statistic = torch.cat([sums for sums, _ in found], dim=1)
    exact = torch.cat([p for _, p in found])
    observed, shuffled = statistic[0], statistic[1:] + 1e-5
    highest = shuffled.amax(1)
    plain = (1 + (shuffled >= observed).sum(0)).double() / (1 + TIMES)
    joint = (1 + (highest[:, None] >= observed).sum(0)).double() / (1 + TIMES)
    return beyond_floor(plain, TIMES, exact), beyond_floor(joint, TIMES, exact * len(exact))


def _statistics(
    x: Float[Tensor, "row unit"], y: Float[Tensor, "row unit"], signs: Float[Tensor, "time row"]
) -> tuple[Float[Tensor, "time unit"], Float[Tensor, "unit"]]:
    """Return each unit's statistic under each choice of signs, and its exact p-value."""
    at = torch.linspace(0, 1, BORDERS + 2, dtype=x.dtype)[1:-1]
    borders = torch.quantile(torch.cat([x, y]), at, dim=0)
    below = [(rows[:, None] <= borders).float() for rows in (x, y)]
    gap = (below[1] - below[0]).flatten(1)
    scale = gap.square().sum(0).sqrt()
    sums = (signs @ gap).abs() / scale.clamp(min=1.0)
    changed = gap.square().sum(0).double()
    common = (changed + gap.sum(0).abs()) / 2
    exact = torch.from_numpy(2 * BORDERS * bdtrc((common - 1).numpy(), changed.long().numpy(), 0.5))
    return sums.reshape(len(signs), BORDERS, -1).amax(1), exact.reshape(BORDERS, -1).amin(0)
