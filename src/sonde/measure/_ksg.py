"""Mutual information from neighbour counts (Kraskov, Stoegbauer and Grassberger, type 1)."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_ENTRIES = 1 << 18
NOISE = 1e-10
ROUNDING = 10 * 2.0**-24  # of two gaps in float32 of values of at most 1: 8 units and a margin


def ksg_terms(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"], group: Int[Tensor, "row"], k: int
) -> Float[Tensor, "row"]:
    """Return each row's term in nats; the mean of the terms is the estimate.

    ``psi(k) + psi(n) - psi(n_x + 1) - psi(n_y + 1)``: ``n_x`` counts the rows of other groups that
    are strictly nearer in ``x`` than the ``k`` th neighbour in both. Distance is the largest
    difference of a unit, and ``n`` is one more than the number of rows of other groups. Every row
    needs ``k`` rows of other groups.
    """
    group = group.to(x.device)
    near, is_sure = _counts_in_float32(x, y, group, k)
    step = max(1, CHUNK_ENTRIES // len(x))
    for rows in torch.nonzero(~is_sure).flatten().split(step):
        gaps = [_largest_gaps(z[rows], z) for z in (x, y)]
        reach = _reach(gaps, group[rows, None] == group, k)
        near[:, rows] = torch.stack([(gap < reach).sum(1) for gap in gaps])
    others = len(x) - torch.bincount(group)[group] + 1
    psi = torch.special.digamma(torch.cat([near + 1, others[None]]).double())
    least = torch.tensor(float(k), dtype=torch.float64, device=x.device)
    return psi[2] - psi[0] - psi[1] + torch.special.digamma(least)


def _counts_in_float32(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"], group: Int[Tensor, "row"], k: int
) -> tuple[Int[Tensor, "2 row"], Bool[Tensor, "row"]]:
    """Return the numbers of nearer rows at each site, and which rows they are exact for.

    At one site the gap to the ``k`` th neighbour equals the reach. A row is sure if no other gap
    differs from the reach by the rounding of two gaps or less.
    """
    near = torch.zeros(2, len(x), dtype=torch.int64, device=x.device)
    is_sure = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    scale = max(float(z.abs().max()) for z in (x, y))
    if not 0 < scale < math.inf:
        return near, is_sure
    units = [(z / scale).float().T.contiguous() for z in (x, y)]
    for rows in torch.arange(len(x), device=x.device).split(max(1, CHUNK_ENTRIES // len(x))):
        gaps = [_gaps_by_units(z, rows) for z in units]
        reach = _reach(gaps, group[rows, None] == group, k)
        low = torch.stack([(gap < reach - ROUNDING).sum(1, dtype=torch.int32) for gap in gaps])
        high = torch.stack([(gap <= reach + ROUNDING).sum(1, dtype=torch.int32) for gap in gaps])
        near[:, rows] = low.long()
        is_sure[rows] = (high - low).sum(0) == 1
    return near, is_sure


def _reach(
    gaps: list[Float[Tensor, "row row2"]], is_own: Bool[Tensor, "row row2"], k: int
) -> Float[Tensor, "row 1"]:
    """Exclude rows of equal groups, and return the ``k`` th smallest distance over both sites."""
    first, second = (gap.masked_fill_(is_own, torch.inf) for gap in gaps)
    return torch.maximum(first, second).topk(k, largest=False).values[:, -1:]


def _gaps_by_units(
    units: Float[Tensor, "dim row2"], rows: Int[Tensor, "row"]
) -> Float[Tensor, "row row2"]:
    """Return the largest difference over units of each pair of rows, with two buffers only."""
    gaps = units.new_zeros(len(rows), units.shape[1])
    gap = torch.empty_like(gaps)
    for values in units:
        torch.sub(values[rows, None], values, out=gap)
        torch.maximum(gaps, gap.abs_(), out=gaps)
    return gaps


def _largest_gaps(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row2 dim"]
) -> Float[Tensor, "row row2"]:
    """Return the largest difference over units of each pair of rows, in full precision."""
    return torch.cdist(x, y, p=torch.inf)


def without_ties(x: Float[Tensor, "row dim"], seed: int) -> Float[Tensor, "row dim"]:
    """Return centred rows, with noise of 1e-10 deviations in units with repeated values."""
    centred = x - x.mean(0)
    ordered = x.T.contiguous().sort(dim=1).values
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if not bool(tied.any()):
        return centred
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return centred + NOISE * noise * (centred.std(0, correction=0) * tied)
