"""Changes of one tensor: of some entries, of all, to another shape, or to a packed form.

A change is computed in float64 and rounded once, to float32 where the tensor is of a half type: a
small edit of a half-precision weight would be lost in its rounding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from jaxtyping import BFloat16, Float, Float16, Int, UInt8
from torch import Tensor, nn

from sonde.core.errors import ShapeError, StateError
from sonde.weights._kinds import is_linear, kind_of
from sonde.weights.packing import pack, unpack
from sonde.weights.quant_linear import Grid

PREFIX = "packed_"
"""Before the name of a tensor of any module: the name of the part that holds its codes."""
HALF = (torch.float16, torch.bfloat16)


class Change(ABC):
    """Change of one tensor. Subclasses are final frozen dataclasses."""

    def of(self, old: Float[Tensor, "..."] | None) -> Float[Tensor, "..."]:
        """Return the changed tensor, with unchanged shape; float32 for half types.

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
        """Return the tensors that define the change, as a patch stores them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]

    def form(self, module: nn.Module, name: str) -> dict[str, Any]:
        """Return the configuration of the tensor's module; empty if its form is unchanged.

        Parameters
        ----------
        module : nn.Module
        name : str
            Of the tensor, as in ``module.state_dict()``.
        """
        return {}

    def replaced(self) -> dict[str, Tensor]:
        """Return the tensors with which the owner's new form replaces this tensor."""
        return {}

    def words(self) -> str:
        """Return the new form of the tensor in words, for pages."""
        return "new values"

    def n_numbers(self, before: int) -> int:
        """Return how many numbers are left of a tensor that had ``before``."""
        return before

    @abstractmethod
    def _of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the changed tensor in float64."""

    def _made(self) -> Float[Tensor, "..."]:
        raise StateError(
            f"{type(self).__name__}: the model has no such tensor to change. To add a tensor, "
            "use Exchange."
        )


@final
@dataclass(frozen=True, eq=False)
class LowRank(Change):
    """Add ``left @ right``.

    Parameters
    ----------
    left : Float[Tensor, "first rank"]
        Left factor of the product, outputs x rank.
    right : Float[Tensor, "rank second"]
        Right factor of the product, rank x inputs.
    """

    left: Float[Tensor, "first rank"]
    right: Float[Tensor, "rank second"]

    def _of(self, old: Tensor) -> Tensor:
        left = self.left.to(old)
        return old + (left @ self.right.to(old)).reshape(old.shape)


@final
@dataclass(frozen=True, eq=False)
class Sparse(Change):
    """Replace the values of some entries.

    Parameters
    ----------
    index : Int[Tensor, "n"]
        Places in the flattened tensor.
    values : Float[Tensor, "n"]
        New values of the chosen entries.
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
    """Replace all values of the tensor.

    Parameters
    ----------
    values : Float[Tensor, "..."]
        New values of the tensor.
    """

    values: Float[Tensor, "..."]

    def factors(self) -> dict[str, Tensor]:
        """Return no tensors, because the edited model itself holds the new values."""
        return {}

    def _of(self, old: Tensor) -> Tensor:
        return self.values.to(old)

    def _made(self) -> Tensor:
        return self.values.detach().to(written_type(self.values.dtype))


@final
@dataclass(frozen=True, eq=False)
class Resized(Change):
    """Replace the tensor by values of another shape.

    Parameters
    ----------
    values : Float[Tensor, "..."]
        New values, of another shape than the old ones.
    """

    values: Float[Tensor, "..."]

    def of(self, old: Float[Tensor, "..."] | None) -> Float[Tensor, "..."]:
        """Return the new values, for any old shape."""
        return self.values.to(written_type((self.values if old is None else old).dtype))

    def factors(self) -> dict[str, Tensor]:
        """Return no tensors, because the edited model itself holds the new values."""
        return {}

    def form(self, module: nn.Module, name: str) -> dict[str, Any]:
        """Return the new shape."""
        return {"shapes": {name.rpartition(".")[2]: list(self.values.shape)}}

    def replaced(self) -> dict[str, Tensor]:
        """Return the values, in the narrowest dtype that holds them exactly."""
        return {"": narrowed(self.values).contiguous()}

    def words(self) -> str:
        """Return the new shape."""
        return " x ".join(map(str, self.values.shape))

    def n_numbers(self, before: int) -> int:
        """Return the size of the new shape."""
        return self.values.numel()

    def _of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.values.to(old)


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed(Change):
    """Change that replaces a linear layer by a layer of another form.

    Parameters
    ----------
    turned : bool, default=False
        Whether the tensor holds the matrix as (in, out), as in GPT-2.
    """

    turned: bool = False

    def factors(self) -> dict[str, Tensor]:
        """Return no tensors, because the new model itself holds the packed tensors."""
        return {}

    def form(self, module: nn.Module, name: str) -> dict[str, Any]:
        """Return ``told()`` for the weight of a linear layer, else an empty dict."""
        path, _, leaf = name.rpartition(".")
        is_packed = bool(path) and leaf == "weight" and is_linear(module.get_submodule(path))
        return self.told() if is_packed else {}

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """Return the new layer's entry in a saved model's configuration."""

    @abstractmethod
    def replaced(self) -> dict[str, Tensor]:
        """Return the tensors with which the new layer replaces this tensor, by name."""

    @abstractmethod
    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the unpacked matrix, in float64."""

    def _of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        matrix = self.matrix().to(old.device)
        matrix = matrix.T if self.turned else matrix
        fits = matrix.numel() == old.numel() and len(matrix) == len(old)
        return matrix.reshape(old.shape) if fits else matrix


@final
@dataclass(frozen=True, eq=False)
class Quantised(Packed):
    """Quantise to a grid: integers with a scale and an offset for each group.

    An entry becomes ``(code - 2^(bits - 1)) * scale + offset``. Groups are runs of entries of one
    row (the last may be shorter); further axes of a kernel count as part of the row.

    Parameters
    ----------
    codes : UInt8[Tensor, "out bytes"]
        Packed, see ``pack``.
    scale : BFloat16[Tensor, "out group"]
        Step of the grid of each group.
    offset : BFloat16[Tensor, "out group"]
        Value of the middle code in each group.
    grid : Grid
        Grid that values are rounded to.
    n_in : int
        Entries of a row.
    turned : bool, default=False
        Whether the tensor holds the matrix as (in, out), as in GPT-2.
    """

    codes: UInt8[Tensor, "out bytes"]
    scale: BFloat16[Tensor, "out group"]
    offset: BFloat16[Tensor, "out group"]
    grid: Grid
    n_in: int

    def told(self) -> dict[str, Any]:
        """Return the grid."""
        return {"bits": self.grid.bits, "group": self.grid.group}

    def replaced(self) -> dict[str, Tensor]:
        """Return codes, scales and offsets, the latter two as the bits of bfloat16."""
        bits = {name: getattr(self, name).view(torch.int16) for name in ("scale", "offset")}
        return {"codes": self.codes, **bits}

    def words(self) -> str:
        """Return bits and group."""
        bits = f"{self.grid.bits} bit{'s' if self.grid.bits > 1 else ''}"
        return f"{bits}, groups of {self.grid.group}"

    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the rounded matrix."""
        codes = unpack(self.codes, self.grid.bits, self.n_in)
        return self.grid.values(codes, self.scale, self.offset, torch.float64)


@final
@dataclass(frozen=True, eq=False)
class QuantisedTensor(Change):
    """Quantise a tensor outside linear layers: an embedding, a stack of experts.

    The module keeps its class; its parameter is held as codes. Groups run along the last axis.

    Parameters
    ----------
    leaf : str
        Name of the parameter in its module.
    codes : UInt8[Tensor, "*lead bytes"]
        Packed.
    scale, offset : BFloat16[Tensor, "*lead group"]
    grid : Grid
    shape : tuple of int
        Of the tensor.
    """

    leaf: str
    codes: UInt8[Tensor, "*lead bytes"]
    scale: BFloat16[Tensor, "*lead group"]
    offset: BFloat16[Tensor, "*lead group"]
    grid: Grid
    shape: tuple[int, ...]

    def factors(self) -> dict[str, Tensor]:
        """Return no tensors, because the new model itself holds the codes."""
        return {}

    def form(self, module: nn.Module, name: str) -> dict[str, Any]:
        """Return the grid and the shape."""
        options = {"bits": self.grid.bits, "group": self.grid.group, "shape": list(self.shape)}
        return {"tensors": {self.leaf: options}}

    def replaced(self) -> dict[str, Tensor]:
        """Return codes, scales and offsets, the latter two as the bits of bfloat16."""
        bits = {name: getattr(self, name).view(torch.int16) for name in ("scale", "offset")}
        return {f"{PREFIX}{self.leaf}.{n}": x for n, x in {"codes": self.codes, **bits}.items()}

    def words(self) -> str:
        """Return bits and group."""
        return f"{self.grid.bits} bits, groups of {self.grid.group}"

    def _of(self, old: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        codes = unpack(self.codes, self.grid.bits, self.shape[-1]).flatten(0, -2)
        scale, offset = (x.flatten(0, -2) for x in (self.scale, self.offset))
        values = self.grid.values(codes, scale, offset, torch.float64)
        return values.reshape(self.shape).to(old.device)


@final
@dataclass(frozen=True, eq=False)
class Thin(Packed):
    """Replace the weight by a product of two thin matrices.

    Parameters
    ----------
    left : Float[Tensor, "out rank"]
        Left factor of the product, outputs x rank.
    right : Float[Tensor, "rank in"]
        Right factor of the product, rank x inputs.
    turned : bool, default=False
        Whether the tensor holds the matrix as (in, out), as in GPT-2.
    """

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]

    def told(self) -> dict[str, Any]:
        """Return the rank."""
        return {"rank": len(self.right)}

    def replaced(self) -> dict[str, Tensor]:
        """Return both matrices, in the narrowest dtype that holds them exactly."""
        return {name: narrowed(getattr(self, name)).contiguous() for name in ("left", "right")}

    def words(self) -> str:
        """Return the rank."""
        return f"rank {len(self.right)}"

    def n_numbers(self, before: int) -> int:
        """Return the size of both matrices."""
        return self.left.numel() + self.right.numel()

    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the product."""
        return self.left.double() @ self.right.double()


@final
@dataclass(frozen=True, eq=False)
class Stacked(Packed):
    """Replace the weight by a sum of blocks: signs times products of thin matrices.

    Parameters
    ----------
    signs : UInt8[Tensor, "level out bytes"]
        Packed, 1 stands for plus.
    left : Float16[Tensor, "level out rank"]
        Left factors of the thin products.
    right : Float16[Tensor, "level rank in"]
        Right factors of the thin products.
    scale : BFloat16[Tensor, "in"]
        What the columns of the sum are divided by.
    turned : bool, default=False
        Whether the tensor holds the matrix as (in, out), as in GPT-2.
    """

    signs: UInt8[Tensor, "level out bytes"]
    left: Float16[Tensor, "level out rank"]
    right: Float16[Tensor, "level rank in"]
    scale: BFloat16[Tensor, "in"]

    def told(self) -> dict[str, Any]:
        """Return the number of blocks and their rank."""
        return {"levels": len(self.signs), "level_rank": self.left.shape[2]}

    def replaced(self) -> dict[str, Tensor]:
        """Return signs, matrices and scales, the latter two as the bits of half types."""
        parts = {name: getattr(self, name).contiguous() for name in ("left", "right", "scale")}
        return {"signs": self.signs, **{n: x.view(torch.int16) for n, x in parts.items()}}

    def words(self) -> str:
        """Return the number of blocks and their rank."""
        return f"{len(self.signs)} blocks of signs and rank {self.left.shape[2]}"

    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the sum."""
        signs = unpack(self.signs, 1, self.right.shape[2]).double() * 2 - 1
        return (signs * (self.left.double() @ self.right.double())).sum(0) / self.scale.double()


@final
@dataclass(frozen=True, eq=False)
class Coded(Packed):
    """Replace the weight by codebook entries, times a scale for each row.

    Parameters
    ----------
    codes : UInt8[Tensor, "out bytes"]
        Packed.
    book : Float16[Tensor, "book entry"]
        Entries of the codebook.
    owner : UInt8[Tensor, "out"]
        Which codebook a row takes.
    scale : BFloat16[Tensor, "out"]
        Scale of each row.
    n_in : int
        Entries of a row.
    turned : bool, default=False
        Whether the tensor holds the matrix as (in, out), as in GPT-2.
    """

    codes: UInt8[Tensor, "out bytes"]
    book: Float16[Tensor, "book entry"]
    owner: UInt8[Tensor, "out"]
    scale: BFloat16[Tensor, "out"]
    n_in: int

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return self.book.shape[1].bit_length() - 1

    def told(self) -> dict[str, Any]:
        """Return the bits of a code and the number of codebooks."""
        return {"book_bits": self.bits, "books": len(self.book)}

    def replaced(self) -> dict[str, Tensor]:
        """Return codes, owners, and codebooks and scales as the bits of half types."""
        bits = {name: getattr(self, name).view(torch.int16) for name in ("book", "scale")}
        return {"codes": self.codes, "owner": self.owner, **bits}

    def words(self) -> str:
        """Return the bits of a code and the number of codebooks."""
        return f"{self.bits} bit codes into {len(self.book)} codebooks"

    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the entries times their rows' scales."""
        codes = unpack(self.codes, self.bits, self.n_in).long()
        book = self.book.double()[self.owner.long()]
        return self.scale.double()[:, None] * book.gather(1, codes)


@final
@dataclass(frozen=True, eq=False)
class Pruned(Packed):
    """Replace the weight by values with many zeros.

    Files hold a bit for each entry, and the entries that are not 0. In memory the layer keeps its
    class and its dense weight.

    Parameters
    ----------
    values : Float[Tensor, "..."]
        In files they have the narrowest type that holds them exactly: float16, bfloat16, float32 or
        their own.
    turned : bool, default=False
        Whether the tensor holds the matrix as (in, out), as in GPT-2.
    """

    values: Float[Tensor, "..."]

    def form(self, module: nn.Module, name: str) -> dict[str, Any]:
        """Return ``told()`` for the weight of a linear or convolution layer, else an empty dict."""
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        is_packed = bool(path) and leaf == "weight" and kind_of(owner) not in (None, "rows")
        return self.told() if is_packed else {}

    def told(self) -> dict[str, Any]:
        """Return the number of kept entries, and the shape."""
        return {"kept": int((self.values != 0).sum()), "shape": list(self.values.shape)}

    def replaced(self) -> dict[str, Tensor]:
        """Return a bit for each entry, and the nonzero entries in order."""
        flat = narrowed(self.values).flatten()
        there = flat != 0
        return {"mask": pack(there.to(torch.uint8), 1), "kept": flat[there].contiguous()}

    def words(self) -> str:
        """Return the fraction of zeros."""
        return f"{float((self.values == 0).double().mean()):.1%} zeros"

    def n_numbers(self, before: int) -> int:
        """Return the number of entries that are not zero."""
        return int(self.values.count_nonzero())

    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the values, with one row for each output."""
        return self.values.double().flatten(1)


def narrowed(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return numbers in the narrowest dtype that holds them exactly."""
    for dtype in (*HALF, torch.float32):
        short = values.to(dtype)
        if torch.equal(short.to(values.dtype), values):
            return short
    return values


def rounded_to_half(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return numbers rounded to float16, or to bfloat16 if needed, in their original dtype."""
    fits = not values.numel() or bool(values.abs().max() < torch.finfo(torch.float16).max)
    return values.to(torch.float16 if fits else torch.bfloat16).to(values.dtype)


def written_type(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a changed tensor is stored."""
    return torch.float32 if dtype in HALF else dtype
