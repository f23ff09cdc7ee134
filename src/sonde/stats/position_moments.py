"""Mean and scatter of rows at each position, such as patches of aligned images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import splitmix64
from sonde.core.ranges import check_ranges
from sonde.core.state import State
from sonde.core.statistic import Statistic

CHUNK = 256


@dataclass(frozen=True)
class PositionMomentsState(State):
    """Moments of selected coordinates of the rows at each position; zeros without rows.

    Of the sums of ``(x - mean)(x - mean)^T``, ``diagonal`` holds the diagonals and ``cross`` what
    is above them, line by line; nothing where only the diagonals were asked for.
    """

    counts: Int[Tensor, "position"]
    mean: Float[Tensor, "position coordinate"]
    diagonal: Float[Tensor, "position coordinate"]
    cross: Float[Tensor, "position entry"]
    coordinates: Int[Tensor, "coordinate"]
    dim: int

    @property
    def n(self) -> int:
        """Number of rows seen at all positions."""
        return int(self.counts.sum())

    def covariance(self, positions: slice) -> Float[Tensor, "_position coordinate coordinate"]:
        """Return the full covariances of a range of positions, with divisor ``n``."""
        d = len(self.coordinates)
        lines, columns = torch.triu_indices(d, d, 1)
        n = self.counts[positions, None].clamp(min=1)
        full = torch.diag_embed(self.diagonal[positions] / n)
        full[:, lines, columns] = full[:, columns, lines] = self.cross[positions] / n
        return full


@final
@dataclass(frozen=True)
class PositionMoments(Statistic[PositionMomentsState]):
    """Count, mean and centred scatter at each position, independent of how rows are divided.

    Parameters
    ----------
    scatter : {"full", "diag"}, default="full"
        Whole matrices, or their diagonals.
    coordinates : int, default=100
        How many coordinates of a row are used, the same ones at all positions; all where a row has
        no more.
    seed : int, default=0
        Which coordinates.
    max_positions : int, default=4096
        Positions of this number or more are refused.

    References
    ----------
    chan1983variance
    """

    scatter: Literal["full", "diag"] = "full"
    coordinates: int = 100
    seed: int = 0
    max_positions: int = 4096

    def __post_init__(self) -> None:
        check_ranges(self, scatter=("full", "diag"), coordinates=">= 1", max_positions=">= 1")

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes at the largest number of positions."""
        d = min(dims[0], self.coordinates)
        entries = 0 if self.scatter == "diag" else d * (d - 1) // 2
        return 8 * self.max_positions * (1 + 2 * d + entries)

    def observe(
        self, x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]
    ) -> PositionMomentsState:
        """Return the moments of a batch of rows."""
        top = int(position.max()) + 1
        if top > self.max_positions or int(position.min()) < 0:
            raise InputError(
                f"PositionMoments: expected positions in [0, {self.max_positions}), got "
                f"{int(position.min())} to {top - 1}. Read smaller images or a later site, or "
                "raise max_positions."
            )
        chosen = chosen_coordinates(x.shape[1], self.coordinates, self.seed)
        rows = x[:, chosen.to(x.device)].double()
        d = len(chosen)
        lines, columns = self._above(d)
        mean, diagonal = rows.new_zeros(top, d), rows.new_zeros(top, d)
        cross = rows.new_zeros(top, len(lines))
        for places, index in by_position(position):
            group = rows[index.to(rows.device)]
            mean[places] = group.mean(1)
            group = group - mean[places][:, None]
            diagonal[places] = group.square().sum(1)
            if len(lines):
                cross[places] = (group.mT @ group)[:, lines, columns]
        counts = torch.bincount(position, minlength=top)
        return PositionMomentsState(counts, mean, diagonal, cross, chosen, x.shape[1])

    def merge(self, a: PositionMomentsState, b: PositionMomentsState) -> PositionMomentsState:
        """Return the joined moments."""
        if a.dim != b.dim:
            raise InputError(
                "PositionMoments.merge: expected two states with rows of the same width, got "
                f"{a.dim} and {b.dim}."
            )
        top = max(len(a.counts), len(b.counts))
        n_a, n_b = _padded(a.counts, top), _padded(b.counts, top)
        n = n_a + n_b
        mean_a, delta = _padded(a.mean, top), _padded(b.mean, top) - _padded(a.mean, top)
        share = (n_b.double() / n.clamp(min=1))[:, None]
        weight = n_a.double()[:, None] * share
        diagonal = _padded(a.diagonal, top) + _padded(b.diagonal, top) + weight * delta.square()
        cross = _padded(a.cross, top) + _padded(b.cross, top)
        lines, columns = self._above(delta.shape[1])
        for start in range(0, top, CHUNK):
            part = slice(start, start + CHUNK)
            cross[part] += weight[part] * delta[part][:, lines] * delta[part][:, columns]
        mean = mean_a + share * delta
        return PositionMomentsState(n, mean, diagonal, cross, a.coordinates, a.dim)

    def _above(self, d: int) -> Int[Tensor, "2 entry"]:
        """Return rows and columns of the stored entries above the diagonal."""
        above = torch.triu_indices(d, d, 1)
        return above[:, :0] if self.scatter == "diag" else above


def chosen_coordinates(dim: int, coordinates: int, seed: int) -> Int[Tensor, "coordinate"]:
    """Return the indices of the coordinates used in rows of this width, ascending."""
    with np.errstate(over="ignore"):
        key = splitmix64(np.array([seed], dtype=np.int64).view(np.uint64))
        order = np.argsort(splitmix64(key + np.arange(dim, dtype=np.uint64)), kind="stable")
    return torch.from_numpy(np.sort(order[:coordinates]))


def by_position(
    position: Int[Tensor, "row"],
) -> Iterator[tuple[Int[Tensor, "position"], Int[Tensor, "position count"]]]:
    """Yield positions with equally many rows, in chunks, and their rows' indices."""
    order = torch.argsort(position, stable=True)
    counts = torch.bincount(position)
    starts = counts.cumsum(0) - counts
    for count in torch.unique(counts[counts > 0]).tolist():
        for places in torch.nonzero(counts == count).flatten().split(CHUNK):
            yield places, order[starts[places][:, None] + torch.arange(count)]


def _padded(x: Tensor, top: int) -> Tensor:
    return torch.cat([x, x.new_zeros(top - len(x), *x.shape[1:])])
