"""Entropy of rows from the distance of their neighbours (Kozachenko and Leonenko)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ENTRIES = 1 << 18


def neighbour_entropy(
    x: Float[Tensor, "row dim"], group: Int[Tensor, "row"], k: int
) -> Float[Tensor, ""]:
    """Return the differential entropy in nats: the mean of ``psi(n) - psi(k) + dim ln(2 r)``.

    ``r`` is the distance of the ``k`` th neighbour among rows of other groups, by the largest
    difference of a unit; ``n`` counts these rows and the row itself. NaN if a row has fewer than
    ``k`` rows of other groups.
    """
    group = group.to(x.device)
    others = len(x) - torch.bincount(group)[group]
    if not len(x) or int(others.min()) < k:
        return torch.tensor(math.nan, dtype=torch.float64)
    reach = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(max(1, CHUNK_ENTRIES // len(x))):
        gaps = torch.cdist(x[rows], x, p=torch.inf)
        gaps.masked_fill_(group[rows, None] == group, torch.inf)
        reach[rows] = gaps.topk(k, largest=False).values[:, -1]
    psi = torch.special.digamma((others + 1).double())
    least = torch.special.digamma(torch.tensor(float(k), dtype=torch.float64))
    return (psi + x.shape[1] * (2 * reach).log()).mean().cpu() - least
