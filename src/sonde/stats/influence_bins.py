"""Bins of a unit's influence (output times gradient) on a grid over its sigmoid."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

CELLS_PER_EDGE = 64
CHUNK = 1 << 16  # numbers at a time, so that what lies between stays in the cache
MOST_CELLS = 1 << 16


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
    """Return the inner thresholds in output times gradient: ``logit(t) / alpha``."""
    return sigmoid_edges(thresholds(n_bins)[1:-2], alpha)


def even_edges(alpha: float, n_bins: int) -> Float[Tensor, "edge"]:
    """Return the inner thresholds of an even grid on [0, 1], as in ``influence_edges``."""
    return sigmoid_edges(torch.linspace(0.0, 1.0, n_bins, dtype=torch.float64)[1:-1], alpha)


def sigmoid_edges(inner: Float[Tensor, "edge"], alpha: float) -> Float[Tensor, "edge"]:
    """Return the points where ``sigmoid(alpha z)`` passes thresholds between 0 and 1."""
    middle = (inner - 0.5).abs() < 1e-12
    return torch.where(middle, torch.zeros_like(inner), torch.logit(inner)) / alpha


def influence_cells(
    x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"], edges: Float[Tensor, "edge"]
) -> Int[Tensor, "cell"]:
    """Return the index of each row and unit in a flattened table of units by bins."""
    offset = torch.arange(x.shape[1], dtype=torch.int32, device=x.device) * (len(edges) + 1)
    out = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    for rows in row_blocks(x):
        exact = x[rows].double() * grad[rows].double()
        torch.add(fast_bins(exact.float(), edges, exact), offset, out=out[rows])
    return out.flatten()


def influence_counts(
    x: Float[Tensor, "row dim"], grad: Float[Tensor, "row dim"], edges: Float[Tensor, "edge"]
) -> Int[Tensor, "dim bin"]:
    """Return each unit's number of rows per bin; the outer bins are open."""
    n_bins = len(edges) + 1
    counts = torch.bincount(influence_cells(x, grad, edges), minlength=x.shape[1] * n_bins)
    return counts.reshape(-1, n_bins)


def row_blocks(x: Float[Tensor, "row dim"]) -> Iterator[slice]:
    """Return blocks of rows small enough for the CPU cache."""
    step = max(1, CHUNK // max(1, x.shape[1]))
    return (slice(start, start + step) for start in range(0, len(x), step))


@dataclass(frozen=True)
class TableBins:
    """Bins between ascending edges, equal to ``torch.bucketize(x, edges, right=True)``.

    The range of the edges is cut into equal cells, each with at most one edge. A number's cell
    gives the bin up to that edge, and one comparison decides. Cells are monotone in the number,
    whatever the rounding, so the result is exact. Rounding to the rows' type is monotone too: a
    rounded number finds the cell of its exact number, and the comparison then uses the exact
    number.
    """

    edges: Float[Tensor, "edge"]
    wide_edges: Float[Tensor, "edge"]
    first: Int[Tensor, "cell"]
    low: float
    scale: float

    @classmethod
    def of(cls, wide: Float[Tensor, "edge"], dtype: torch.dtype) -> "TableBins | None":
        """Return the table for a number type, or None if edges are too uneven or fewer than 2."""
        edges = wide.to(dtype)
        n_cells = min(MOST_CELLS, CELLS_PER_EDGE * (len(edges) + 1))
        width = float(edges[-1] - edges[0])
        if len(edges) < 2 or not width > 0.0 or not math.isfinite((n_cells - 2) / width):
            return None
        low, scale = float(edges[0]), (n_cells - 2) / width
        cells = _cells(edges, low, scale, n_cells).long()
        counts = torch.bincount(cells, minlength=n_cells)
        if int(counts.max()) > 1:
            return None
        last = wide.new_full((1,), math.nan)  # above no number
        first = (counts.cumsum(0) - counts).int()
        return cls(torch.cat([edges, last.to(dtype)]), torch.cat([wide, last]), first, low, scale)

    def __call__(
        self, x: Float[Tensor, "row dim"], exact: Float[Tensor, "row dim"] | None = None
    ) -> Int[Tensor, "row dim"]:
        """Return each number's bin as int32; NaN gets the first bin."""
        edges = self.edges if exact is None else self.wide_edges
        flat, compared = x.flatten(), (x if exact is None else exact).flatten()
        out = torch.empty(flat.shape, dtype=torch.int32, device=x.device)
        for start in range(0, len(flat), CHUNK):
            part, bins = slice(start, start + CHUNK), out[start : start + CHUNK]
            cell = _cells(flat[part], self.low, self.scale, len(self.first))
            torch.index_select(self.first, 0, cell, out=bins)
            bins += compared[part] >= edges.index_select(0, bins)
        return out.view(x.shape)


def _cells(x: Tensor, low: float, scale: float, n_cells: int) -> Tensor:
    position = x.mul(scale).add_(1.0 - low * scale).nan_to_num_(0.0).clamp_(0.0, n_cells - 1.0)
    return position.int()


@lru_cache(maxsize=64)
def _table(edges: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> TableBins | None:
    return TableBins.of(torch.tensor(edges, dtype=torch.float64, device=device), dtype)


def fast_bins(
    x: Float[Tensor, "row dim"],
    edges: Float[Tensor, "edge"],
    exact: Float[Tensor, "row dim"] | None = None,
) -> Int[Tensor, "row dim"]:
    """Return each number's bin (edges at or below it), as int32.

    ``exact`` holds float64 numbers that round to ``x``: if given, they are binned against the edges
    as they are. Otherwise ``x`` is binned against the edges rounded to its type.

    Examples
    --------
    >>> import torch
    >>> fast_bins(torch.tensor([[-1.0, 0.5, 2.0, 9.0]]), torch.tensor([0.0, 1.0, 2.0])).tolist()
    [[0, 1, 3, 3]]
    """
    table = _table(tuple(edges.tolist()), x.dtype, x.device)
    if table is not None:
        return table(x, exact)
    numbers = x if exact is None else exact
    return torch.bucketize(numbers, edges.to(numbers), right=True, out_int32=True)
