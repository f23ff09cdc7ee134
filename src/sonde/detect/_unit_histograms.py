"""Distances of two histograms of each unit: chi-square with its tail, divergence, Wasserstein."""

import math

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import chdtrc
from torch import Tensor

from sonde.stats import LogHistogramState, log_centres
from sonde.stats.log_histogram import SUB

LEAST, MOST = 10, 24
LOG_2 = math.log(2)
BIN_WIDTH = 2 ** (1 / (2 * SUB)) - 2 ** (-1 / (2 * SUB))


def chi_squares(
    a: LogHistogramState, b: LogHistogramState, n: tuple[int, int]
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return each unit's divergence in bits, homogeneity statistic and p-value.

    Bins are joined, from the lowest on, into at most ``MOST`` cells of about equal shares. In each
    cell the smaller side expects at least ``LEAST`` rows. If only one cell is left, p is 1.
    """
    counts = [state.counts.double().cpu() for state in (a, b)]
    shares = [c / c.sum(1, keepdim=True) for c in counts]
    cell = _cells((n[0] * shares[0] + n[1] * shares[1]) / sum(n), min(n))
    joined = [torch.zeros(len(s), MOST + 1, dtype=s.dtype).scatter_add_(1, cell, s) for s in shares]
    middle = (joined[0] + joined[1]) / 2
    bits = (_relative(joined[0], middle) + _relative(joined[1], middle)) / 2
    pooled = (n[0] * joined[0] + n[1] * joined[1]) / sum(n)
    gap = (joined[0] - joined[1]).square()
    weight = n[0] * n[1] / sum(n)
    chi = weight * torch.where(pooled > 0, gap / pooled, torch.zeros_like(gap)).sum(1)
    bits_of = [m * _relative(s, pooled) for m, s in zip(n, joined, strict=True)]
    likelihood = 2 * LOG_2 * (bits_of[0] + bits_of[1])
    statistic = torch.minimum(chi, likelihood)
    freedom = (pooled > 0).sum(1) - 1
    p = torch.from_numpy(chdtrc(freedom.clamp(min=1).numpy(), statistic.numpy()))
    return bits, statistic, torch.where(freedom > 0, p, torch.ones_like(p))


def _cells(pooled: Float[Tensor, "dim bin"], n: int) -> Int[Tensor, "dim bin"]:
    """Return the cell of each bin; a cell closes at a least share, and the last takes the rest."""
    full = max(LEAST / n, 1 / MOST) - 1e-12
    cell = torch.zeros(pooled.shape, dtype=torch.int64)
    held, at = torch.zeros(len(pooled), dtype=pooled.dtype), cell[:, 0].clone()
    for i in torch.nonzero((pooled > 0).any(0)).flatten().tolist():
        cell[:, i] = at
        held += pooled[:, i]
        at += held >= full
        held = torch.where(held >= full, torch.zeros_like(held), held)
    return torch.minimum(cell.cummax(1).values, (at - 1).clamp(min=0)[:, None])


def _relative(p: Float[Tensor, "dim cell"], q: Float[Tensor, "dim cell"]) -> Float[Tensor, "dim"]:
    """Return the relative entropy in bits; empty cells add nothing."""
    ratio = torch.where(p > 0, p / q, torch.ones_like(p))
    return (p * ratio.log2()).sum(1)


def wasserstein(a: LogHistogramState, b: LogHistogramState) -> Float[Tensor, "dim"]:
    """Return how far each unit's mass moved, in pooled standard deviations of the bins' centres.

    NaN if this standard deviation is below the width of the unit's fullest bin.
    """
    centres = log_centres()
    shares = [s.counts.double().cpu() / s.n for s in (a, b)]
    gap = (shares[0] - shares[1]).cumsum(1)[:, :-1].abs()
    moved = gap @ centres.diff()
    weight = a.n / (a.n + b.n)
    pooled = weight * shares[0] + (1 - weight) * shares[1]
    mean = pooled @ centres
    spread = (pooled @ centres.square() - mean.square()).clamp(min=0).sqrt()
    width = BIN_WIDTH * centres[pooled.argmax(1)].abs()
    moved = torch.where(spread > 0, moved / spread, torch.zeros_like(moved))
    return torch.where(spread < width, torch.full_like(moved, math.nan), moved)


def in_one_bin(a: LogHistogramState, b: LogHistogramState) -> Bool[Tensor, "dim"]:
    """Return which units have all rows of both sides in the same bin, other than the zero bin."""
    fullest = (a.counts + b.counts).max(1)
    is_zero = log_centres()[fullest.indices.cpu()] == 0
    return (fullest.values.cpu() == a.n + b.n) & ~is_zero
