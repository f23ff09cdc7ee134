"""Shared parts of methods that find one direction: the direction, its length and its sign."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.stats import ClassMomentsState, TwoGroups


@final
@dataclass(frozen=True)
class Direction:
    """A unit vector, with the rows' standard deviation and two groups' distance along it.

    A vector of zeros says that no direction was found.
    """

    unit: Float[Tensor, "dim"]
    spread: float
    gap: float

    @classmethod
    def along(
        cls,
        axis: Float[Tensor, "dim"],
        gap: Float[Tensor, "dim"],
        covariance: Float[Tensor, "dim dim"] | Float[Tensor, "dim"],
    ) -> "Direction":
        """Return an axis with its sign chosen so that the first group is on the positive side.

        If both means lie at the same place along the axis, its entry of largest size is positive.
        """
        length = axis.norm()
        unit = axis / length if bool(length > 0) else torch.zeros_like(axis)
        ahead = float(unit @ gap)
        if ahead < 0 or (ahead == 0 and float(unit[unit.abs().argmax()]) < 0):
            unit, ahead = -unit, -ahead
        variance = unit.square() @ covariance if covariance.ndim == 1 else unit @ covariance @ unit
        return cls(unit, float(variance.clamp(min=0.0).sqrt()), ahead)


def all_pairs(classes: ClassMomentsState, groups: TwoGroups, positive: int) -> Tensor:
    """Return the mean of ``(p - q)(p - q)^T`` over rows p of one class and q of the others.

    It is ``S_p + S_q + gap gap^T``, exact from the moments of each class.
    """
    is_positive = classes.labels == positive
    within, weight, mean = (t.detach() for t in (classes.within, classes.weight, classes.mean))
    rest = (mean - groups.mean[0]) * (weight * ~is_positive).sqrt()[:, None]
    others = (within[~is_positive].sum(0) + rest.T @ rest) / groups.n[0]
    own = within[is_positive].sum(0) / groups.n[1]
    return own + others + torch.outer(groups.gap, groups.gap)


def leading(second: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim"]:
    """Return the eigenvector of the largest eigenvalue, or zeros if no eigenvalue is above 0."""
    values, vectors = torch.linalg.eigh(second)
    return vectors[:, -1] * (values[-1] > 0)


def require_direction(owner: str, direction: Float[Tensor, "dim"]) -> None:
    """Raise if a vector has no direction.

    Raises
    ------
    InputError
        If it is zero or not finite.
    """
    length = direction.norm()
    if not (bool(length > 0) and bool(torch.isfinite(length))):
        raise InputError(
            f"{owner}: expected a direction of length above 0, got length {float(length):g}: "
            "both sides have the same mean. Pass data that differ, or read another site."
        )
