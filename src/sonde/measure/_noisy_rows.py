"""Bounds on the information of a noisy row about the noiseless row."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.stats.neighbours import distance_chunks


def information_bounds(
    x: Float[Tensor, "row dim"], label: Float[Tensor, "row 1"], variance: float
) -> Float[Tensor, "2"]:
    """Return an upper and a lower bound of ``I(row; row + noise | class)`` in nats.

    The upper bound is the mean over rows of ``-ln m``, where ``m`` is the mean of
    ``exp(-d^2 / (2 v))`` over the rows of the class. The lower bound has 8 in place of 2.
    """
    total = torch.zeros(2, dtype=torch.float64, device=x.device)
    width = torch.tensor([2.0, 8.0], dtype=torch.float64, device=x.device) * variance
    for own in torch.unique(label):
        z = x[label[:, 0] == own]
        for _, gap in distance_chunks(z, z):
            exponent = -gap.square()[None] / width[:, None, None]
            total -= (exponent.logsumexp(2) - math.log(len(z))).sum(1)
    return total / len(x)
