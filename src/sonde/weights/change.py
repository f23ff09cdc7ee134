"""How one tensor of a model changes: by a product of two thin matrices, at some entries, or whole.

A change is computed in float64 and rounded once, to float32 where the tensor is of a half type: a
small edit of a half-precision weight would be lost in its rounding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import ShapeError, StateError

HALF = (torch.float16, torch.bfloat16)


class Change(ABC):
    """What becomes of one tensor. Subclasses are final frozen dataclasses."""

    def of(self, old: Float[Tensor, "..."] | None) -> Float[Tensor, "..."]:
        """Return the changed tensor, of the same shape; float32 for one of a half type.

        Parameters
        ----------
        old : Float[Tensor, "..."] or None
            None where the model has no such tensor, as a bias that it could have.

        Raises
        ------
        ShapeError
            If the change is for a tensor of another shape.
        StateError
            If it needs a tensor and there is none.
        """
        if old is None:
            return self._made()
        new = self._of(old.detach().double())
        if new.shape != old.shape:
            raise ShapeError(
                f"{type(self).__name__}: expected a tensor of shape {tuple(new.shape)}, "
                f"got {tuple(old.shape)}. The change was made for another model."
            )
        return new.to(written_type(old.dtype))

    def factors(self) -> dict[str, Tensor]:
        """Return what the change is made of, as it is kept in a patch."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def _of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the changed tensor in float64."""

    def _made(self) -> Float[Tensor, "..."]:
        raise StateError(
            f"{type(self).__name__}: the model has no such tensor to change. Give a new one with "
            "Exchange."
        )


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

    def factors(self) -> dict[str, Tensor]:
        """Return nothing: the new values are the edited model's own."""
        return {}

    def _of(self, old: Tensor) -> Tensor:
        return self.values.to(old)

    def _made(self) -> Tensor:
        return self.values.detach().to(written_type(self.values.dtype))


def written_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a changed tensor is kept."""
    return torch.float32 if dtype in HALF else dtype
