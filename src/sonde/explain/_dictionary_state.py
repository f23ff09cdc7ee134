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
    def scale(self) -> Float[Tensor, "dim"]:
        """What each unit that is read is multiplied by: one number for each site."""
        return _scales(self.read)

    @property
    def scale_out(self) -> Float[Tensor, "dim_out"]:
        """What each unit that is rebuilt is multiplied by."""
        return _scales(self.rebuilt)


def _scales(moments: tuple[MomentsState, ...]) -> Float[Tensor, "dim"]:
    """Return for each unit ``sqrt(dim / mean |x|^2)`` of its site."""
    found: list[Tensor] = []
    for one in moments:
        power = float((one.variance + one.mean.square()).sum())
        dim = len(one.mean)
        scale = math.sqrt(dim / power) if power > 0 else 1.0
        found.append(torch.full((dim,), scale, dtype=torch.float64))
    return torch.cat(found)


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
