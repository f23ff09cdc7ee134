"""Moments of a block's update: the rows after it minus the rows before it."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.statistic import Span, Statistic
from sonde.stats.moments import Moments, MomentsState

_DIAGONAL = Moments("diag")


@final
@dataclass(frozen=True)
class UpdateMoments(Statistic[MomentsState]):
    """Count, mean and variance of each unit of ``y - x``, for sites of equal width."""

    span: ClassVar[Span] = "pair"

    def observe(self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim"]) -> MomentsState:
        """Return the moments of a batch of differences."""
        return _DIAGONAL.observe(_difference(x, y))

    def merge(self, a: MomentsState, b: MomentsState) -> MomentsState:
        """Return the joined moments."""
        return _DIAGONAL.merge(a, b)

    def influence(
        self,
        state: MomentsState,
        gradient: MomentsState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim"],
    ) -> Float[Tensor, "row"]:
        """Return the influence of ``Moments`` at the differences."""
        return _DIAGONAL.influence(state, gradient, _difference(x, y))


def _difference(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"UpdateMoments.observe: expected two sites of the same width, got {x.shape[1]} "
            f"and {y.shape[1]}. Name such sites (--sites)."
        )
    kind = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return y.to(kind) - x.to(kind)
