"""P-values of units' means on two sides of other rows, right for sparse and skewed units too."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.detect._sides import TwoSamples
from sonde.detect._tails import bennett_exponent, beyond_floor, subset_tail
from sonde.stats import ScalarsState

TIMES = 999


def shuffled_means(
    rows: TwoSamples, bound: Float[Tensor, "dim"], sampled: bool
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return p-values of each unit's mean, plain and adjusted for the number of units.

    The sample's rows are shuffled over both sides. The adjusted p-value compares with the most
    surprising unit of each shuffle, by Bennett's exponent: a common measure for units of any
    sparsity. The bound, of the means of all rows, goes on where no shuffle reaches; where the
    sample is not all rows, twice the smaller of both holds.
    """
    found = []
    for p, other in zip(_shuffled(rows), (bound, bound * len(bound)), strict=True):
        both = 2 * torch.minimum(p, other) if sampled else beyond_floor(p, TIMES, other)
        found.append(both.clamp(max=1.0))
    return found[0], found[1]


def _shuffled(rows: TwoSamples) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return permutation p-values, plain and adjusted."""
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
    """Return each unit's difference of means in standard errors of a shuffled one, and its bound.

    Both are about all rows, of which ``n`` are independent; differences within rounding are 0.
    """
    shares = [m / sum(n) for m in n]
    gap, mean = (b.mean - a.mean).abs(), shares[0] * a.mean + shares[1] * b.mean
    gap = torch.where(gap > 1e-12 * torch.maximum(a.mean.abs(), b.mean.abs()), gap, 0.0)
    between = shares[0] * shares[1] * gap.square()
    spread = (shares[0] * a.variance + shares[1] * b.variance + between).sqrt()
    reach = torch.maximum(torch.maximum(a.high, b.high) - mean, mean - torch.minimum(a.low, b.low))
    errors = torch.where(gap > 0, gap / spread * (shares[0] * n[1]) ** 0.5, torch.zeros_like(gap))
    return errors.cpu(), subset_tail(gap.cpu(), spread.cpu(), reach.cpu(), n)
