"""P-values of units where both sides are the same rows, from what changes inside pairs."""

import torch
from jaxtyping import Float
from scipy.special import stdtr
from torch import Tensor

from sonde.detect._sides import Rows

TIMES = 999
BORDERS = 15
UNITS_AT_ONCE = 64


def paired_means(pairs: Rows) -> Float[Tensor, "dim"]:
    """Return Student's two-sided p-value of each unit's differences."""
    gap = pairs.y - pairs.x
    n, mean = len(gap), gap.mean(0)
    error = ((gap - mean).square().sum(0) / (n * (n - 1))).sqrt()
    t = torch.where(mean == 0, torch.zeros_like(mean), mean.abs() / error)
    return torch.from_numpy(2 * stdtr(n - 1, -t.numpy()))


def paired_shares(pairs: Rows) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return p-values of each unit's distribution, plain and adjusted for the number of units.

    A unit's statistic is the largest standardised difference of the shares of both sides below 15
    quantiles of the pooled rows; its null changes the sides of pairs at random. The adjusted
    p-value compares with the largest statistic of all units under the same exchanges.
    """
    signs = torch.cat([torch.ones(1, len(pairs.x)), pairs.signs(TIMES).float()])
    found = [
        _statistics(pairs.x[:, part], pairs.y[:, part], signs)
        for part in torch.arange(pairs.x.shape[1]).split(UNITS_AT_ONCE)
    ]
    statistic = torch.cat(found, dim=1)
    observed, shuffled = statistic[0], statistic[1:] + 1e-5
    highest = shuffled.amax(1)
    plain = (1 + (shuffled >= observed).sum(0)).double() / (1 + TIMES)
    joint = (1 + (highest[:, None] >= observed).sum(0)).double() / (1 + TIMES)
    return plain, joint


def _statistics(
    x: Float[Tensor, "row unit"], y: Float[Tensor, "row unit"], signs: Float[Tensor, "time row"]
) -> Float[Tensor, "time unit"]:
    """Return each unit's statistic under each choice of signs."""
    at = torch.linspace(0, 1, BORDERS + 2, dtype=x.dtype)[1:-1]
    borders = torch.quantile(torch.cat([x, y]), at, dim=0)
    below = [(rows[:, None] <= borders).float() for rows in (x, y)]
    gap = (below[1] - below[0]).flatten(1)
    scale = gap.square().sum(0).sqrt()
    sums = (signs @ gap).abs() / scale.clamp(min=1.0)
    return sums.reshape(len(signs), BORDERS, -1).amax(1)
