"""Moments of directions: rows scaled to unit length."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.statistic import Statistic
from sonde.stats.class_moments import ClassMoments, ClassMomentsState
from sonde.stats.moments import Moments, MomentsState

_EACH = ClassMoments("full")


@final
@dataclass(frozen=True)
class DirectionMoments(Statistic[MomentsState]):
    """Count, mean and scatter of unit-length rows; zero rows stay zero. Independent of splits.

    Parameters
    ----------
    scatter : {"full", "diag"}, default="full"
        The whole scatter matrix, or its diagonal alone.
    """

    scatter: Literal["full", "diag"] = "full"

    def observe(self, x: Float[Tensor, "row dim"]) -> MomentsState:
        """Return the moments of a batch's unit-length rows."""
        return Moments(self.scatter).observe(unit_rows(x))

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        """Return the joined moments."""
        return Moments(self.scatter).merge(a, b)

    def influence(
        self, state: MomentsState, gradient: MomentsState, x: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "row"]:
        """Return the influence of ``Moments`` for unit-length rows."""
        return Moments(self.scatter).influence(state, gradient, unit_rows(x))


@final
@dataclass(frozen=True)
class ClassDirectionMoments(Statistic[ClassMomentsState]):
    """Count, mean and scatter matrix of each class's unit-length rows, however rows are divided."""

    def observe(self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"]) -> ClassMomentsState:
        """Return the class moments of a batch's unit-length rows."""
        return _EACH.observe(unit_rows(x), label)

    def merge(self, a: ClassMomentsState, b: ClassMomentsState) -> ClassMomentsState:
        """Return the joined class moments."""
        return _EACH.merge(a, b)

    def influence(
        self,
        state: ClassMomentsState,
        gradient: ClassMomentsState,
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return the influence of ``ClassMoments`` for unit-length rows."""
        return _EACH.influence(state, gradient, unit_rows(x), label)


def unit_rows(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Return the rows at unit length, in float32 or float64.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows of any length above 0.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    largest = wide.abs().amax(dim=1, keepdim=True)  # first, so that no square under- or overflows
    wide = wide / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return wide / torch.where(length > 0, length, 1.0)
