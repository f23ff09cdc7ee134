"""What an order of rows tells of them: held against random orders of the same rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor

BLOCKS, RESAMPLES = 10, 200


@dataclass(frozen=True)
class Ordered:
    """How far an order explains rows, what random orders give, and the chance of as much."""

    value: float
    null: float
    p: float


def of_tenths(x: Float[Tensor, "row dim"], seed: int = 0) -> Ordered:
    """Return the share of the standardised variance of rows that lies between tenths of an order.

    Rows stand in that order. Mean, spread and chance come from random orders; the chance is that
    of a normal law, as the share is a sum over ten means.
    """
    x = x[:, x.amax(0) > x.amin(0)].double()
    if x.shape[1] == 0:
        return Ordered(0.0, 0.0, 1.0)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    tenth = torch.arange(len(z)) * BLOCKS // len(z)
    member = torch.nn.functional.one_hot(tenth, BLOCKS).double()
    means = member / member.sum(0).sqrt()
    return _against([means, *_shuffled(means, seed)], z)


def of_neighbours(label: Int[Tensor, "row"], seed: int = 0) -> Ordered:
    """Return the share of labels that the next row of an order has too."""
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(label), generator=draw) for _ in range(RESAMPLES)]
    alike = [label, *(label[order] for order in orders)]
    return _judged([float((a[1:] == a[:-1]).double().mean()) for a in alike])


def _shuffled(means: Float[Tensor, "row block"], seed: int) -> list[Float[Tensor, "row block"]]:
    draw = torch.Generator().manual_seed(seed)
    return [means[torch.randperm(len(means), generator=draw)] for _ in range(RESAMPLES)]


def _against(orders: list[Float[Tensor, "row block"]], z: Float[Tensor, "row dim"]) -> Ordered:
    return _judged([float((means.T @ z).square().sum()) / z.numel() for means in orders])


def _judged(values: list[float]) -> Ordered:
    null = torch.tensor(values[1:], dtype=torch.float64)
    spread = float(null.std())
    z = (values[0] - float(null.mean())) / spread if spread > 0 else 0.0
    return Ordered(values[0], float(null.mean()), float(norm.sf(z)))
