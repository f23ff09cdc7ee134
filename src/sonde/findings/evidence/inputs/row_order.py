"""How much the order of rows explains their values, compared with random orders."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.stats import pearson3
from torch import Tensor

BLOCKS, RESAMPLES = 10, 200
MOST_SKEWED = 2.0
"""Skewness of an exponential law; larger ones of 200 orders are mostly noise."""


@dataclass(frozen=True)
class Ordered:
    """A fraction that an order of rows explains, and the same fraction for random orders.

    Parameters
    ----------
    value, null : float
        The share in this order, and its mean over random orders.
    p : float
        Chance that a random order explains as much or more.
    """

    value: float
    null: float
    p: float


def of_tenths(x: Float[Tensor, "row dim"], seed: int = 0) -> Ordered:
    """Return the largest fraction of a column's variance that tenths of the order explain.

    Rows are given in the order. A share is the variance of the ten means over the variance of the
    rows. The chance refers to the sum of all columns' shares, under a normal law with the mean and
    spread of random orders.
    """
    x = x[:, x.amax(0) > x.amin(0)].double()
    if x.shape[1] == 0:
        return Ordered(0.0, 0.0, 1.0)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    tenth = torch.arange(len(z)) * BLOCKS // len(z)
    member = torch.nn.functional.one_hot(tenth, BLOCKS).double()
    means = member / member.sum(0).sqrt()
    orders = [means, *_shuffled(means, seed)]
    shares = torch.stack([(m.T @ z).square().sum(0) for m in orders]) / len(z)
    largest = shares.amax(1)
    return Ordered(float(largest[0]), float(largest[1:].mean()), _chance(shares.sum(1)))


def of_neighbours(label: Int[Tensor, "row"], seed: int = 0) -> Ordered:
    """Return the fraction of rows whose next row has the same label."""
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(label), generator=draw) for _ in range(RESAMPLES)]
    alike = [label, *(label[order] for order in orders)]
    shares = torch.stack([(a[1:] == a[:-1]).double().mean() for a in alike])
    return Ordered(float(shares[0]), float(shares[1:].mean()), _chance(shares))


def _shuffled(means: Float[Tensor, "row block"], seed: int) -> list[Float[Tensor, "row block"]]:
    draw = torch.Generator().manual_seed(seed)
    return [means[torch.randperm(len(means), generator=draw)] for _ in range(RESAMPLES)]


def _chance(values: Float[Tensor, "order"]) -> float:
    """Return the p-value that a random order gives the first value or more.

    By a gamma law (Pearson III) with the mean, spread and skewness of the random orders: shares of
    rare classes are skewed, and a normal law would call one random order in two hundred unusual.
    """
    drawn = values[1:].double()
    spread = float(drawn.std())
    if spread <= 1e-12 * float(drawn.abs().max()):
        return 1.0
    z = (values.double() - drawn.mean()) / spread
    skewness = min(max(float(z[1:].pow(3).mean()), 0.0), MOST_SKEWED)
    return float(pearson3.sf(float(z[0]), skewness))
