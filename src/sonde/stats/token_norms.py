"""Lengths of rows, separately for first positions, special tokens and all others."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.log_histogram import BINS, SUB, log_bins, log_centres

FIRST, SPECIAL, REST = range(3)
TINY = 1e-15


@dataclass(frozen=True)
class TokenNormsState(State):
    """Sums of norms and squared norms, and counts by ``log_bins``, for each kind of token."""

    sum: Float[Tensor, "3"]
    square: Float[Tensor, "3"]
    counts: Int[Tensor, "3 bin"]

    @property
    def n(self) -> Int[Tensor, "3"]:
        """Number of rows of each kind."""
        return self.counts.sum(1)

    @property
    def median(self) -> Float[Tensor, "3"]:
        """Median norm of each kind, interpolated: to 4 % for rows, 9 % if they are equally long."""
        return torch.stack([_median(c) for c in self.counts])

    @property
    def median_all(self) -> Float[Tensor, ""]:
        """Median norm of all rows."""
        return _median(self.counts.sum(0))

    @property
    def energy_share(self) -> Float[Tensor, "3"]:
        """Fraction of the sum of squared norms, by kind of token."""
        return self.square / self.square.sum()


@final
@dataclass(frozen=True)
class TokenNorms(Statistic[TokenNormsState]):
    """Norms of rows of three kinds: first position, other special tokens, all others."""

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        position: Int[Tensor, "row"],
        special: Bool[Tensor, "row"],
    ) -> TokenNormsState:
        """Return the sums and counts of a batch."""
        norm = _norms(x.detach()).cpu()
        special, position = special.cpu(), position.cpu()
        bucket = torch.where(special, SPECIAL, REST).masked_fill(position == 0, FIRST)
        counts = torch.bincount(bucket * BINS + log_bins(norm), minlength=3 * BINS)
        norm, zero = norm.double(), torch.zeros(3, dtype=torch.float64)
        return TokenNormsState(
            zero.index_add(0, bucket, norm),
            zero.index_add(0, bucket, norm.square()),
            counts.reshape(3, BINS),
        )

    def merge(self, a: TokenNormsState, b: TokenNormsState) -> TokenNormsState:
        """Return the joined sums."""
        return TokenNormsState(a.sum + b.sum, a.square + b.square, a.counts + b.counts)


def _norms(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
    """Return each row's length, in float64 if its square overflows float32."""
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
    low, high = torch.aminmax(norm)
    if float(low) > TINY and math.isfinite(float(high)):
        return norm
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)


def _median(counts: Int[Tensor, "bin"]) -> Float[Tensor, ""]:
    """Return the median, between the edges of its bin by the rows below; NaN without rows.

    Zero, and the outermost bins, which are open, have their centres.
    """
    n = int(counts.sum())
    if n == 0:
        return torch.tensor(float("nan"), dtype=torch.float64)
    below = counts.cumsum(0)
    at = int(torch.searchsorted(below, torch.tensor((n + 1) // 2)))
    centre = log_centres()[at].to(counts.device)
    if at in (BINS // 2, BINS // 2 + 1, BINS - 1):
        return centre
    share = (n / 2 - float(below[at] - counts[at])) / float(counts[at])
    return centre * 2.0 ** ((share - 0.5) / SUB)
