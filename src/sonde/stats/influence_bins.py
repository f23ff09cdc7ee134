"""Bins of a unit's influence, its output times its gradient, on a grid over a sigmoid of it."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.stats.table_bins import CHUNK, fast_bins


def thresholds(n_bins: int) -> Float[Tensor, "threshold"]:
    """Return the grid of the paper on (0, 1): fine around 0.5, coarse at the ends.

    The last but one is raised so that 1 lies inside; the last is never reached.
    """
    x = torch.linspace(1.0, math.sqrt(1000.0), n_bins // 2, dtype=torch.float64)
    low = x.log() / math.log(1000.0)
    grid = torch.cat([low[:-1], (1.0 - low).flip(0), torch.tensor([1.2], dtype=torch.float64)])
    grid[-2] += 0.01
    return grid


def influence_edges(alpha: float, n_bins: int) -> Float[Tensor, "edge"]:
    """Return the inner thresholds in units of output times gradient: ``logit(t) / alpha``."""
    return sigmoid_edges(thresholds(n_bins)[1:-2], alpha)


def even_edges(alpha: float, n_bins: int) -> Float[Tensor, "edge"]:
    """Return the inner thresholds of an even grid on [0, 1], in units of ``influence_edges``."""
    return sigmoid_edges(torch.linspace(0.0, 1.0, n_bins, dtype=torch.float64)[1:-1], alpha)


def sigmoid_edges(inner: Float[Tensor, "edge"], alpha: float) -> Float[Tensor, "edge"]:
    """Return where ``sigmoid(alpha z)`` passes thresholds strictly between 0 and 1."""
    middle = (inner - 0.5).abs() < 1e-12
    return torch.where(middle, torch.zeros_like(inner), torch.logit(inner)) / alpha


def influence_cells(
    x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"], edges: Float[Tensor, "edge"]
) -> Int[Tensor, "cell"]:
    """Return the index of every row and unit in a flattened table of units by bins."""
    offset = torch.arange(x.shape[1], dtype=torch.int32, device=x.device) * (len(edges) + 1)
    out = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    for rows in row_blocks(x):
        exact = x[rows].double() * grad[rows].double()
        torch.add(fast_bins(exact.float(), edges, exact), offset, out=out[rows])
    return out.flatten()


def influence_counts(
    x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"], edges: Float[Tensor, "edge"]
) -> Int[Tensor, "dim bin"]:
    """Return how many rows put each unit into each bin; the outer bins are open."""
    n_bins = len(edges) + 1
    counts = torch.bincount(influence_cells(x, grad, edges), minlength=x.shape[1] * n_bins)
    return counts.reshape(-1, n_bins)


def row_blocks(x: Float[Tensor, "row dim"]) -> Iterator[slice]:
    """Return blocks of rows small enough to stay in the cache between two operations."""
    step = max(1, CHUNK // max(1, x.shape[1]))
    return (slice(start, start + step) for start in range(0, len(x), step))
