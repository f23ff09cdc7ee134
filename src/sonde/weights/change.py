"""How one tensor of a model changes: by a product of two thin matrices, at some entries, or whole.

A change is computed in float64 and rounded once, to float32 where the tensor is of a half type: a
small edit of a half-precision weight would be lost in its rounding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import ShapeError

HALF = (torch.float16, torch.bfloat16)


class Change(ABC):
    """What becomes of one tensor. Subclasses are final frozen dataclasses."""

    def of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the changed tensor, of the same shape; float32 for one of a half type.

        Raises
        ------
        ShapeError
            If the change is for a tensor of another shape.
        """
        new = self._of(old.detach().double())
        if new.shape != old.shape:
            raise ShapeError(
                f"{type(self).__name__}: expected a tensor of shape {tuple(new.shape)}, "
                f"got {tuple(old.shape)}. The change was made for another model."
            )
        return new.to(torch.float32 if old.dtype in HALF else old.dtype)

    @abstractmethod
    def _of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the changed tensor in float64."""


@final
@dataclass(frozen=True, eq=False)
class LowRank(Change):
    """Add ``left @ right``.

    Parameters
    ----------
    left : Float[Tensor, "first rank"]
    right : Float[Tensor, "rank second"]
    """

    left: Float[Tensor, "first rank"]
    right: Float[Tensor, "rank second"]

    def _of(self, old: Tensor) -> Tensor:
        left = self.left.to(old)
        return old + (left @ self.right.to(old)).reshape(old.shape)


@final
@dataclass(frozen=True, eq=False)
class Sparse(Change):
    """Put new values at some entries.

    Parameters
    ----------
    index : Int[Tensor, "n"]
        Places in the flattened tensor.
    values : Float[Tensor, "n"]
    """

    index: Int[Tensor, "n"]
    values: Float[Tensor, "n"]

    def _of(self, old: Tensor) -> Tensor:
        new = old.flatten().clone()
        new[self.index.to(new.device)] = self.values.to(new)
        return new.reshape(old.shape)


@final
@dataclass(frozen=True, eq=False)
class Exchange(Change):
    """Put new values in place of the whole tensor.

    Parameters
    ----------
    values : Float[Tensor, "..."]
    """

    values: Float[Tensor, "..."]

    def _of(self, old: Tensor) -> Tensor:
        return self.values.to(old)
