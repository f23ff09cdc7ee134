"""State of a dictionary's training between batches of rows, and the scaling of the rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.explain._held_out import HeldGroups, HeldOut
from sonde.stats import solve_normal_equations
from sonde.stats.moments import Moments, MomentsState
from sonde.stats.training import TrainingState

_DIAGONAL = Moments("diag")
MASSIVE = 10.0
"""Standard deviation of a unit, relative to the median unit, above which it is scaled down."""


@dataclass(frozen=True, kw_only=True)
class DictionaryState(TrainingState):
    """State of a dictionary's training between batches of rows.

    ``read`` and ``rebuilt`` are the moments of the rows that are read and of the rows that are
    rebuilt, site by site. ``fired`` counts the rows in which each feature is active, over the last
    walk, with the final weights; ``held_out`` and ``trained_on`` sum the errors of the groups that
    were held out and of all others. ``components`` are the moments of the rows that train.
    """

    read: tuple[MomentsState, ...] = ()
    rebuilt: tuple[MomentsState, ...] = ()
    cross: Tensor | None = None
    fired: Int[Tensor, "feature"] | None = None
    groups: HeldGroups = field(default_factory=HeldGroups)
    held_out: HeldOut = field(default_factory=HeldOut)
    trained_on: HeldOut = field(default_factory=HeldOut)
    components: MomentsState | None = None
    n: int = 0

    @property
    def mean(self) -> Float[Tensor, "dim"]:
        """Mean of each input unit, which is subtracted first."""
        return torch.cat([m.mean for m in self.read])

    @property
    def mean_out(self) -> Float[Tensor, "dim_out"]:
        """Mean of each output unit, which is subtracted first."""
        return torch.cat([m.mean for m in self.rebuilt])

    @property
    def scale(self) -> Float[Tensor, "dim"]:
        """Scale factor of each input unit, applied after its mean is subtracted."""
        return self.site_scale(self.read) * self.weight(self.read)

    @property
    def scale_out(self) -> Float[Tensor, "dim_out"]:
        """Scale factor of each output unit, applied after its mean is subtracted."""
        return self.site_scale(self.rebuilt) * self.weight(self.rebuilt)

    def site_scale(self, sides: tuple[MomentsState, ...]) -> Float[Tensor, "dim"]:
        """Return the factor of each site that scales its mean weighted variance to 1.

        The factor is repeated for each unit of its site.
        """
        scales: list[Tensor] = []
        for one in sides:
            mean = float((one.variance * _weight(one).square()).mean())
            scales.append(torch.full_like(one.mean, 1 / math.sqrt(mean) if mean > 0 else 1.0))
        return torch.cat(scales)

    def weight(self, sides: tuple[MomentsState, ...]) -> Float[Tensor, "dim"]:
        """Return the weight of each unit: 1, or less if its standard deviation is very large."""
        return torch.cat([_weight(one) for one in sides])


def _weight(one: MomentsState) -> Float[Tensor, "dim"]:
    """Return weights that shrink units above ``MASSIVE`` median deviations to the median."""
    spread = one.variance.clamp(min=0).sqrt()
    alive = spread[spread > 0]
    if not len(alive):
        return torch.ones_like(spread)
    usual = alive.median()
    return torch.where(spread > MASSIVE * usual, usual / spread.clamp(min=1e-300), 1.0)


def counted(known: tuple[MomentsState, ...], rows: tuple[Tensor, ...]) -> tuple[MomentsState, ...]:
    """Return the moments after more rows are added, for each site."""
    seen = tuple(_DIAGONAL.observe(x.cpu()) for x in rows)
    if not known:
        return seen
    return tuple(_DIAGONAL.merge(a, b) for a, b in zip(known, seen, strict=True))


def unit(x: Tensor) -> Tensor:
    """Return the rows, normalised to unit length."""
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def lengths(decoder: Tensor, widths: Sequence[int]) -> Tensor:
    """Return the length of each feature's decoder row, summed over sites."""
    return torch.stack([part.norm(dim=1) for part in decoder.split(list(widths), 1)]).sum(0)


def least_squares(cross: Float[Tensor, "dim1 dim1_and_out"]) -> tuple[Tensor, Tensor]:
    """Return the slope and the intercept of a least-squares fit, from sums of products."""
    n = len(cross)
    solution = solve_normal_equations(cross[:, :n], cross[:, n:])
    return solution[:-1].T, solution[-1]
