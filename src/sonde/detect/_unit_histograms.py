"""Distances of two histograms of each unit: chi-square with its tail, divergence, Wasserstein."""

import torch
from jaxtyping import Float, Int
from scipy.special import chdtrc
from torch import Tensor

from sonde.stats import LogHistogramState, log_centres

LEAST, MOST = 10, 24


def chi_squares(
    a: LogHistogramState, b: LogHistogramState, n: tuple[int, int]
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return divergence in bits, chi-square of homogeneity and its p-value, of each unit.

    Bins of the pooled rows are joined, from the lowest on, to cells of about equal shares, so that
    the smaller side expects at least ``LEAST`` rows in each but for the widths of bins.
    """
    cells = max(2, min(MOST, min(n) // LEAST))
    counts = [state.counts.double().cpu() for state in (a, b)]
    joined = _joined(counts, cells)
    shares = [c / c.sum(1, keepdim=True) for c in joined]
    middle = (shares[0] + shares[1]) / 2
    bits = (_relative(shares[0], middle) + _relative(shares[1], middle)) / 2
    weight = n[0] * n[1] / sum(n)
    pooled = (n[0] * shares[0] + n[1] * shares[1]) / sum(n)
    gap = (shares[0] - shares[1]).square()
    chi = weight * torch.where(pooled > 0, gap / pooled, torch.zeros_like(gap)).sum(1)
    freedom = ((pooled > 0).sum(1) - 1).clamp(min=1)
    return bits, chi, torch.from_numpy(chdtrc(freedom.numpy(), chi.numpy()))


def _joined(counts: list[Float[Tensor, "dim bin"]], cells: int) -> list[Float[Tensor, "dim cell"]]:
    """Return the counts in ``cells`` cells of about equal shares of the pooled rows."""
    shares = [c / c.sum(1, keepdim=True) for c in counts]
    pooled = (shares[0] + shares[1]) / 2
    centre = pooled.cumsum(1) - pooled / 2
    cell: Int[Tensor, "dim bin"] = (centre * cells).long().clamp(0, cells - 1)
    return [c.new_zeros(len(c), cells).scatter_add_(1, cell, c) for c in counts]


def _relative(p: Float[Tensor, "dim cell"], q: Float[Tensor, "dim cell"]) -> Float[Tensor, "dim"]:
    """Return the relative entropy in bits; empty cells add nothing."""
    ratio = torch.where(p > 0, p / q, torch.ones_like(p))
    return (p * ratio.log2()).sum(1)


def wasserstein(a: LogHistogramState, b: LogHistogramState) -> Float[Tensor, "dim"]:
    """Return how far each unit's mass moved, in pooled standard deviations of the bins' centres."""
    centres = log_centres()
    shares = [s.counts.double().cpu() / s.n for s in (a, b)]
    gap = (shares[0] - shares[1]).cumsum(1)[:, :-1].abs()
    moved = gap @ centres.diff()
    weight = a.n / (a.n + b.n)
    pooled = weight * shares[0] + (1 - weight) * shares[1]
    mean = pooled @ centres
    spread = (pooled @ centres.square() - mean.square()).clamp(min=0).sqrt()
    return torch.where(spread > 0, moved / spread, torch.zeros_like(moved))
