"""Labelled rows as two groups: one class, and all others."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.stats.class_moments import ClassMomentsState


@final
@dataclass(frozen=True)
class TwoGroups:
    """Moments of the positive class (``n[1]``, ``mean[1]``) and of all other labelled rows.

    Scatters are matrices, or diagonals where the class moments hold these.

    Parameters
    ----------
    n : (float, float)
        Number of rows of the other classes and of the positive class.
    mean : Float[Tensor, "2 dim"]
        Mean of the other classes and of the positive class.
    within : Float[Tensor, "dim dim"] or Float[Tensor, "dim"]
        Scatter within both groups, or its diagonal.
    flags : tuple of str
        Flags of the moments, such as ``few_rows``.
    """

    n: tuple[float, float]
    mean: Float[Tensor, "2 dim"]
    within: Float[Tensor, "dim dim"] | Float[Tensor, "dim"]
    flags: tuple[str, ...]

    @classmethod
    def of(cls, owner: str, classes: ClassMomentsState, positive: int) -> "TwoGroups":
        """Return two groups from class moments, whose scatter must not be a trace.

        Raises
        ------
        InputError
            If one of the groups has no row.
        """
        chosen = classes.labels == positive
        weight = classes.weight.detach()
        n = float(weight[~chosen].sum()), float(weight[chosen].sum())
        if min(n) == 0:
            raise InputError(
                f"{owner}: expected rows of class {positive} and of another class, got "
                f"{n[1]:.0f} and {n[0]:.0f} rows. Give labelled rows of both, or choose "
                "another class with positive=."
            )
        mean = classes.mean.detach()
        shares = torch.stack([weight * ~chosen / n[0], weight * chosen / n[1]])
        means = shares @ mean
        gap = (mean - means[chosen.long()]) * weight.sqrt()[:, None]
        within = classes.pooled.detach()
        within = within + (gap.square().sum(0) if within.ndim == 1 else gap.T @ gap)
        flags = ["unlabelled"] if classes.unlabelled is not None else []
        flags += ["few_rows"] if sum(n) <= mean.shape[1] else []
        return cls(n, means, within, tuple(flags))

    @property
    def n_rows(self) -> int:
        """Number of labelled rows."""
        return round(sum(self.n))

    @property
    def gap(self) -> Float[Tensor, "dim"]:
        """Mean of the positive class minus mean of the others."""
        return self.mean[1] - self.mean[0]

    @property
    def total(self) -> Float[Tensor, "dim dim"] | Float[Tensor, "dim"]:
        """Scatter of all labelled rows around their mean."""
        weight = self.n[0] * self.n[1] / sum(self.n)
        shift = self.gap.square() if self.within.ndim == 1 else torch.outer(self.gap, self.gap)
        return self.within + weight * shift
