"""How one tensor of a model changes: by a product of two thin matrices, at some entries, or whole.

A change is computed in float64 and rounded once, to float32 where the tensor is of a half type: a
small edit of a half-precision weight would be lost in its rounding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from math import prod
from typing import Any, final

import torch
from jaxtyping import BFloat16, Float, Int, UInt8
from torch import Tensor, nn

from sonde.core.errors import ShapeError, StateError
from sonde.weights.packing import unpack
from sonde.weights.quant_linear import Grid, packed_linear
from sonde.weights.thin_linear import thin_linear

HALF = (torch.float16, torch.bfloat16)


class Change(ABC):
    """Change of one tensor. Subclasses are final frozen dataclasses."""

    def of(self, old: Float[Tensor, "..."] | None) -> Float[Tensor, "..."]:
        """Return the changed tensor, of the same shape; float32 if the tensor has a half type.

        Parameters
        ----------
        old : Float[Tensor, "..."] or None
            None if the model lacks the tensor, such as a bias that it could have.

        Raises
        ------
        ShapeError
            If the change is for a tensor of another shape.
        StateError
            If it needs a tensor and ``old`` is None.
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

    def packs(self, module: nn.Module, name: str) -> bool:
        """Return whether a layer of another kind takes the place of the tensor's owner.

        Parameters
        ----------
        module : nn.Module
        name : str
            Of the tensor, as in ``module.state_dict()``.
        """
        return False

    def put_into(self, module: nn.Module, name: str) -> None:  # noqa: B027 (most pack nothing)
        """Put that layer into a new model, whose tensors may be shared with the old one."""

    def replaced(self) -> dict[str, Tensor]:
        """Return the tensors that a new layer has in place of this one, by their last name."""
        return {}

    def told(self) -> dict[str, Any]:
        """Return what a saved model's configuration must say of the new layer."""
        return {}

    def words(self) -> str:
        """Return the new form of the tensor in words, for pages."""
        return "new values"

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


@final
@dataclass(frozen=True, eq=False)
class Quantised(Change):
    """Round to a grid: small whole numbers with a scale and an offset for each group.

    An entry becomes ``(code - 2^(bits - 1)) * scale + offset``. Groups are runs of entries of one
    row (the last may be shorter); further axes of a kernel count as part of the row.

    Parameters
    ----------
    codes : UInt8[Tensor, "out bytes"]
        Packed, see ``pack``.
    scale, offset : BFloat16[Tensor, "out group"]
    grid : Grid
    shape : tuple of int
        Of the tensor.
    """

    codes: UInt8[Tensor, "out bytes"]
    scale: BFloat16[Tensor, "out group"]
    offset: BFloat16[Tensor, "out group"]
    grid: Grid
    shape: tuple[int, ...]

    def factors(self) -> dict[str, Tensor]:
        """Return nothing: the codes are the new model's own."""
        return {}

    def packs(self, module: nn.Module, name: str) -> bool:
        """Return whether the tensor is the weight of a linear layer inside the model."""
        return _is_weight_of_linear(module, name)

    def put_into(self, module: nn.Module, name: str) -> None:
        """Put a ``QuantLinear`` in the place of the layer, under each of its names."""
        layer: Any = module.get_submodule(name.rpartition(".")[0])
        new = packed_linear(layer, self.codes, self.scale, self.offset, self.grid)
        _exchange_layer(module, layer, new)

    def replaced(self) -> dict[str, Tensor]:
        """Return codes, scales and offsets, the latter two as the bits of bfloat16."""
        bits = {name: getattr(self, name).view(torch.int16) for name in ("scale", "offset")}
        return {"codes": self.codes, **bits}

    def told(self) -> dict[str, Any]:
        """Return the grid."""
        return {"bits": self.grid.bits, "group": self.grid.group}

    def words(self) -> str:
        """Return bits and group."""
        bits = f"{self.grid.bits} bit{'s' if self.grid.bits > 1 else ''}"
        return f"{bits}, groups of {self.grid.group}"

    def _of(self, old: Tensor) -> Tensor:
        n = prod(self.shape[1:])
        codes = unpack(self.codes, self.grid.bits, n)
        found = self.grid.values(codes, self.scale, self.offset, torch.float64)
        return found.reshape(self.shape).to(old.device)


@final
@dataclass(frozen=True, eq=False)
class Thin(Change):
    """Put a product of two thin matrices in place of the whole weight.

    Parameters
    ----------
    left : Float[Tensor, "out rank"]
    right : Float[Tensor, "rank in"]
    """

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]

    def factors(self) -> dict[str, Tensor]:
        """Return nothing: both matrices are the new model's own."""
        return {}

    def packs(self, module: nn.Module, name: str) -> bool:
        """Return whether the tensor is the weight of a linear layer inside the model."""
        return _is_weight_of_linear(module, name)

    def put_into(self, module: nn.Module, name: str) -> None:
        """Put a ``ThinLinear`` in the place of the layer, under each of its names."""
        layer: Any = module.get_submodule(name.rpartition(".")[0])
        _exchange_layer(module, layer, thin_linear(layer, self.left, self.right))

    def replaced(self) -> dict[str, Tensor]:
        """Return both matrices, in the narrowest type that holds them exactly."""
        return {name: narrowed(getattr(self, name)).contiguous() for name in ("left", "right")}

    def told(self) -> dict[str, Any]:
        """Return the rank."""
        return {"rank": len(self.right)}

    def words(self) -> str:
        """Return the rank."""
        return f"rank {len(self.right)}"

    def _of(self, old: Tensor) -> Tensor:
        return self.left.to(old) @ self.right.to(old)


def narrowed(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return numbers in the narrowest type that holds them exactly."""
    for dtype in (*HALF, torch.float32):
        short = values.to(dtype)
        if torch.equal(short.to(values.dtype), values):
            return short
    return values


def rounded_to_half(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return numbers rounded to float16, or to bfloat16 if one is too large, in their own type."""
    fits = not values.numel() or bool(values.abs().max() < torch.finfo(torch.float16).max)
    return values.to(torch.float16 if fits else torch.bfloat16).to(values.dtype)


def _is_weight_of_linear(module: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    forward: Any = type(module.get_submodule(path)).forward
    return bool(path) and leaf == "weight" and forward is nn.Linear.forward


def _exchange_layer(module: nn.Module, layer: nn.Module, new: nn.Module) -> None:
    for place, part in list(module.named_modules(remove_duplicate=False)):
        if part is layer:
            above, _, own = place.rpartition(".")
            setattr(module.get_submodule(above), own, new)


def written_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a changed tensor is kept."""
    return torch.float32 if dtype in HALF else dtype
