"""P-values of units on two sides: from shuffled rows, and from differences inside pairs."""

import torch
from jaxtyping import Float
from scipy.special import bdtrc, stdtr
from torch import Tensor

from sonde.detect._sides import TwoSamples
from sonde.detect._tails import bennett_exponent, beyond_floor, subset_tail
from sonde.stats import ScalarsState

TIMES = 999
BORDERS = 15
UNITS_AT_ONCE = 64


def shuffled_means(
    rows: TwoSamples, bound: Float[Tensor, "dim"], sampled: bool
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return p-values of each unit's mean, plain and adjusted for the number of units.

    The sample's rows are shuffled over both sides. The adjusted p-value compares with the most
    surprising unit of each shuffle, by Bennett's exponent: a common measure for units of any
    sparsity. If no shuffle reaches the observed value, ``bound``, from the means of all rows, may
    lower the p-value. If the sample is not all rows, the p-value is twice the smaller of both.
    """
    found = []
    for p, other in zip(_shuffled(rows), (bound, bound * len(bound)), strict=True):
        both = 2 * torch.minimum(p, other) if sampled else beyond_floor(p, TIMES, other)
        found.append(both.clamp(max=1.0))
    return found[0], found[1]


def _shuffled(rows: TwoSamples) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return permutation p-values, plain and adjusted for the number of units."""
    pooled = torch.cat([rows.x, rows.y])
    pooled -= pooled.mean(0)
    own = torch.arange(len(pooled)) < len(rows.x)
    chosen = torch.cat([own[None], rows.shuffles(TIMES)]).double()
    share = len(rows.x) / len(pooled)
    variance = share * (1 - share) * pooled.square().sum(0)
    reach = max(share, 1 - share) * pooled.abs().amax(0)
    found = bennett_exponent((chosen @ pooled).abs(), variance, reach)
    observed, shuffled = found[0], found[1:] * (1 + 1e-9)
    highest = shuffled.amax(1, keepdim=True)
    plain, joint = ((shuffled >= observed).sum(0), (highest >= observed).sum(0))
    return (1 + plain).double() / (1 + TIMES), (1 + joint).double() / (1 + TIMES)


def shuffled_tail(
    a: ScalarsState, b: ScalarsState, n: tuple[int, int]
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return each unit's difference of means in standard errors under shuffling, and a tail bound.

    Both use all rows; ``n`` rows of each side are independent. Differences within rounding are 0.
    """
    shares = [m / sum(n) for m in n]
    gap, mean = (b.mean - a.mean).abs(), shares[0] * a.mean + shares[1] * b.mean
    gap = torch.where(gap > 1e-12 * torch.maximum(a.mean.abs(), b.mean.abs()), gap, 0.0)
    between = shares[0] * shares[1] * gap.square()
    spread = (shares[0] * a.variance + shares[1] * b.variance + between).sqrt()
    reach = torch.maximum(torch.maximum(a.high, b.high) - mean, mean - torch.minimum(a.low, b.low))
    errors = torch.where(gap > 0, gap / spread * (shares[0] * n[1]) ** 0.5, torch.zeros_like(gap))
    return errors.cpu(), subset_tail(gap.cpu(), spread.cpu(), reach.cpu(), n)


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
    p-value compares with the largest statistic of all units under the same exchanges. If no
    exchange reaches the observed value, McNemar's exact test at the clearest of the 15 may lower
    the p-value: times 15 and, if adjusted, times the number of units.
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
