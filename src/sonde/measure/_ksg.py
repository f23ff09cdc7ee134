"""Mutual information from numbers of neighbours (Kraskov, Stoegbauer and Grassberger, type 1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ENTRIES = 1 << 18
NOISE = 1e-10


def ksg_terms(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"], group: Int[Tensor, "row"], k: int
) -> Float[Tensor, "row"]:
    """Return what each row adds to the mean that is the estimate, in nats.

    ``psi(k) + psi(n) - psi(n_x + 1) - psi(n_y + 1)`` with ``n_x`` the rows of other groups that are
    strictly nearer in ``x`` than the ``k`` th neighbour in both, by the largest difference of a
    unit; ``n`` is one more than the rows of other groups. Every row needs ``k`` of them.
    """
    group = group.to(x.device)
    size = torch.bincount(group)[group]
    found: list[Tensor] = []
    for rows in torch.arange(len(x), device=x.device).split(max(1, CHUNK_ENTRIES // len(x))):
        own = group[rows, None] == group
        first, second = (_largest_gaps(z[rows], z).masked_fill_(own, torch.inf) for z in (x, y))
        reach = torch.maximum(first, second).topk(k, largest=False).values[:, -1:]
        near = torch.stack([(gap < reach).sum(1) for gap in (first, second)])
        others = len(x) - size[rows] + 1
        psi = torch.special.digamma(torch.stack([*(near + 1), others]).double())
        found.append(psi[2] - psi[0] - psi[1])
    least = torch.tensor(float(k), dtype=torch.float64, device=x.device)
    return torch.cat(found) + torch.special.digamma(least)


def _largest_gaps(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row2 dim"]
) -> Float[Tensor, "row row2"]:
    """Return the largest difference of a unit between rows, to the last digit."""
    return torch.cdist(x, y, p=torch.inf)


def without_ties(x: Float[Tensor, "row dim"], seed: int) -> Float[Tensor, "row dim"]:
    """Return centred rows, with noise of 1e-10 deviations on units that repeat a value."""
    centred = x - x.mean(0)
    ordered = x.sort(dim=0).values
    tied = (ordered[1:] == ordered[:-1]).any(0)
    if not bool(tied.any()):
        return centred
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return centred + NOISE * noise * (centred.std(0, correction=0) * tied)
