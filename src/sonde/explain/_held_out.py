"""Groups that a dictionary is judged on, and the variance of their rows."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.hashing import fraction
from sonde.core.state import State, map_tensors
from sonde.stats.moments import Moments, MomentsState

HELD = 0.1
"""Fraction of the groups that is held out."""


@dataclass(frozen=True)
class HeldGroups(State):
    """The smallest and the largest sampling key of the groups, as fractions of all keys.

    Groups with a key below ``HELD`` are held out; if these are none or all, the group with the
    smallest key. A single group is never held out.

    Parameters
    ----------
    first, last : float
        Smallest and largest key.
    n : int
        Number of rows.
    n_below : int
        Rows of the groups with a key below ``HELD``.
    n_first : int
        Rows of the group with the smallest key.
    """

    first: float = math.inf
    last: float = -math.inf
    n: int = 0
    n_below: int = 0
    n_first: int = 0

    def counted(self, group_draw: Int[Tensor, "row"]) -> "HeldGroups":
        """Return the state after more rows."""
        keys = fraction(group_draw.cpu())
        least = float(keys.min())
        n_first = int((keys == least).sum())
        if least == self.first:
            n_first += self.n_first
        elif least > self.first:
            n_first = self.n_first
        return HeldGroups(
            min(least, self.first),
            max(float(keys.max()), self.last),
            self.n + len(keys),
            self.n_below + int((keys < HELD).sum()),
            n_first,
        )

    @property
    def limit(self) -> float:
        """Key below which groups are held out."""
        if self.first >= self.last:
            return 0.0
        return HELD if self.first < HELD <= self.last else math.nextafter(self.first, 1.0)

    @property
    def n_used(self) -> int:
        """Rows of the groups that train."""
        limit = self.limit
        held = self.n_below if limit == HELD else self.n_first
        return self.n - (held if limit > 0 else 0)

    def mask(self, group_draw: Int[Tensor, "row"]) -> Bool[Tensor, "row"]:
        """Return whether each row is held out."""
        return fraction(group_draw.cpu()) < self.limit


@dataclass(frozen=True)
class HeldOut(State):
    """Squared errors and moments of the rows that are held out.

    Parameters
    ----------
    error : float
        Sum of squared errors.
    moments : MomentsState or None
        Moments of the rows that are rebuilt, relative to the mean of all rows; of the whole
        covariance for principal components.
    """

    error: float = 0.0
    moments: MomentsState | None = None

    def counted(
        self, error: Float[Tensor, "row"], rows: Float[Tensor, "row dim"], moments: Moments
    ) -> "HeldOut":
        """Return the sums after more rows."""
        if not len(rows):
            return self
        total = self.error + float(error.double().sum())
        return HeldOut(total, added(self.moments, rows, moments))

    @property
    def n(self) -> int:
        """Number of rows."""
        return 0 if self.moments is None else self.moments.n

    @property
    def unexplained(self) -> float:
        """Squared error as a fraction of the rows' scatter around the mean of all rows."""
        scatter = self.scatter
        return self.error / scatter if scatter > 0 else math.nan

    @property
    def scatter(self) -> float:
        """Sum of squares of the rows, relative to the mean of all rows."""
        if self.moments is None:
            return 0.0
        return float(self.moments.variance.sum() + self.moments.mean.square().sum()) * self.n

    def unexplained_by_components(self, trained: MomentsState, n: int) -> float:
        """Return the fraction that principal components of other rows leave unexplained.

        Parameters
        ----------
        trained : MomentsState
            Moments of the rows whose components are taken.
        n : int
            Number of components.
        """
        if self.moments is None or self.moments.scatter.ndim == 1:
            return math.nan
        axes = torch.linalg.eigh(trained.covariance.cpu()).eigenvectors.flip(1)[:, :n]
        own, gap = self.moments, self.moments.mean.cpu() - trained.mean.cpu()
        spread = own.scatter.cpu() + own.n * torch.outer(gap, gap)
        left = spread.trace() - ((spread @ axes) * axes).sum()
        return float(left) / self.scatter if self.scatter > 0 else math.nan


def added(
    known: MomentsState | None, rows: Float[Tensor, "row dim"], moments: Moments
) -> MomentsState | None:
    """Return moments after more rows, on the CPU."""
    if not len(rows):
        return known
    seen = moments.observe(rows.cpu())
    return seen if known is None else moments.merge(map_tensors(known, lambda t: t.cpu()), seen)
