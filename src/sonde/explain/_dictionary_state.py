"""What the training of a dictionary holds between rows, and the scale of what it reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.stats.moments import Moments, MomentsState
from sonde.stats.training import TrainingState

_DIAGONAL = Moments("diag")
MASSIVE = 10.0
"""Spread of a unit, in median spreads of its site, above which it is scaled down."""


@dataclass(frozen=True, kw_only=True)
class DictionaryState(TrainingState):
    """What the training of a dictionary holds between rows.

    ``read`` and ``rebuilt`` are the moments of what is read and of what is rebuilt, at each site;
    ``fired`` counts the rows in which each feature is active and ``error`` sums squared errors,
    both over the last walk, with the weights as they came out.
    """

    read: tuple[MomentsState, ...] = ()
    rebuilt: tuple[MomentsState, ...] = ()
    cross: Tensor | None = None
    fired: Int[Tensor, "feature"] | None = None
    error: float = 0.0
    n: int = 0

    @property
    def mean(self) -> Float[Tensor, "dim"]:
        """What is taken from each unit that is read."""
        return torch.cat([m.mean for m in self.read])

    @property
    def mean_out(self) -> Float[Tensor, "dim_out"]:
        """What is taken from each unit that is rebuilt."""
        return torch.cat([m.mean for m in self.rebuilt])

    @property
    def scale(self) -> Float[Tensor, "dim"]:
        """What each unit that is read is then multiplied by."""
        return self.site_scale(self.read) * self.weight(self.read)

    @property
    def scale_out(self) -> Float[Tensor, "dim_out"]:
        """What each unit that is rebuilt is then multiplied by."""
        return self.site_scale(self.rebuilt) * self.weight(self.rebuilt)

    def site_scale(self, sides: tuple[MomentsState, ...]) -> Float[Tensor, "dim"]:
        """Return the one number of each site that brings its weighed variance to 1 for each unit.

        It stands in the place of each unit of its site.
        """
        found: list[Tensor] = []
        for one in sides:
            mean = float((one.variance * _weight(one).square()).mean())
            found.append(torch.full_like(one.mean, 1 / math.sqrt(mean) if mean > 0 else 1.0))
        return torch.cat(found)

    def weight(self, sides: tuple[MomentsState, ...]) -> Float[Tensor, "dim"]:
        """Return the weight of each unit: 1, or less for a unit that outweighs all others."""
        return torch.cat([_weight(one) for one in sides])


def _weight(one: MomentsState) -> Float[Tensor, "dim"]:
    """Return weights that give a unit of ``MASSIVE`` median spreads or more the median spread."""
    spread = one.variance.clamp(min=0).sqrt()
    alive = spread[spread > 0]
    if not len(alive):
        return torch.ones_like(spread)
    usual = alive.median()
    return torch.where(spread > MASSIVE * usual, usual / spread.clamp(min=1e-300), 1.0)


def counted(known: tuple[MomentsState, ...], rows: tuple[Tensor, ...]) -> tuple[MomentsState, ...]:
    """Return moments with those of more rows, site by site."""
    seen = tuple(_DIAGONAL.observe(x.cpu()) for x in rows)
    if not known:
        return seen
    return tuple(_DIAGONAL.merge(a, b) for a, b in zip(known, seen, strict=True))


def unit(x: Tensor) -> Tensor:
    """Return rows of unit length."""
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def lengths(decoder: Tensor, widths: Sequence[int]) -> Tensor:
    """Return the sum over sites of the lengths of each feature's row."""
    return torch.stack([part.norm(dim=1) for part in decoder.split(list(widths), 1)]).sum(0)


def least_squares(cross: Float[Tensor, "dim1 dim1_and_out"]) -> tuple[Tensor, Tensor]:
    """Return the linear map and the offset of least squares from sums of products."""
    n = len(cross)
    found = torch.linalg.lstsq(cross[:, :n], cross[:, n:], driver="gelsd").solution
    return found[:-1].T, found[-1]
