"""Fraction of the variance of token rows that lies inside examples."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.moments import Moments, MomentsState, centre, centred_squares
from sonde.stats.sequences import example_numbers

_DIAGONAL = Moments("diag")


@dataclass(frozen=True)
class GroupMeansState(State):
    """Moments of all rows, and their scatter about their own example's mean."""

    rows: MomentsState
    within: Float[Tensor, "dim"]
    n_examples: int

    @property
    def within_share(self) -> Float[Tensor, "dim"]:
        """Fraction of each unit's variance inside examples; NaN for constant units.

        With equally long examples this is ``1 - var(example means) / var(rows)``.
        """
        return self.within / self.rows.scatter


@final
@dataclass(frozen=True)
class GroupMeans(Statistic[GroupMeansState]):
    """Variance of rows inside and between examples, per unit; independent of how rows are divided.

    All rows of an example must come in one ``observe`` call, as batches bring them.
    """

    def observe(self, x: Float[Tensor, "row dim"], order: Int[Tensor, "row"]) -> GroupMeansState:
        """Return the moments of a batch of rows."""
        mean, z, residual = centre(x)
        member = example_numbers(order.to(x.device))
        size = torch.bincount(member)
        sums = torch.zeros(len(size), x.shape[1], dtype=z.dtype, device=z.device)
        sums = sums.index_add_(0, member, z).double()
        rows = MomentsState(len(x), mean, centred_squares(x, mean, z, residual))
        squares = rows.scatter + len(x) * residual.square()
        within = squares - (sums.square() / size[:, None]).sum(0)
        return GroupMeansState(rows, within.clamp(min=0.0), len(size))

    def merge(self, a: GroupMeansState, b: GroupMeansState) -> GroupMeansState:
        """Return the joined moments."""
        return GroupMeansState(
            _DIAGONAL.merge(a.rows, b.rows), a.within + b.within, a.n_examples + b.n_examples
        )

    def influence(
        self,
        state: GroupMeansState,
        gradient: GroupMeansState,
        x: Float[Tensor, "row dim"],
        order: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return each row's effect as part of its example, which must be complete."""
        x = x.to(state.within)
        member = example_numbers(order.to(x.device))
        size = torch.bincount(member).to(x)
        mean = torch.zeros(len(size), x.shape[1], dtype=x.dtype, device=x.device)
        mean = mean.index_add_(0, member, x) / size[:, None]
        inside = (x - mean[member]).square() @ gradient.within
        return inside + _DIAGONAL.influence(state.rows, gradient.rows, x)
