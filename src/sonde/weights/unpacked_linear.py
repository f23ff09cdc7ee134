"""Linear layers that unpack their weight at each use, and never keep it."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import ShapeError
from sonde.weights.packed_tensor import PackedTensor
from sonde.weights.packing import packed_length, unpack
from sonde.weights.quant_linear import BLOCK, NoGradient, plain_linear


class UnpackedLinear(nn.Module, ABC):
    """A linear layer that computes rows of its weight at run time; subclasses define how.

    It saves memory and no time. It runs under gradients, as frozen layers do, but has none itself.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    """

    like: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        # follows ``.to(dtype)``, so that ``weight`` has the type that the model computes in
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features), False) if bias else None

    @abstractmethod
    def rows(self, part: Any) -> Float[Tensor, "row in"]:
        """Return some rows of the weight, in float32."""

    @property
    def weight(self) -> Tensor:
        """The weight, for code that reads it outside the layer; it is unpacked on use."""
        shape = self.out_features, self.in_features
        return PackedTensor(self, shape, self.like.dtype, self.like.device)

    def values(self) -> Float[Tensor, "out in"]:
        """Return the weight that the layer multiplies by."""
        return self.rows(slice(None))

    def dequantise(self) -> nn.Linear:
        """Return a plain, trainable linear layer with an equal weight in float32."""
        return plain_linear(self.values(), self.bias)

    def forward(self, x: Shaped[Tensor, "*batch in"]) -> Shaped[Tensor, "*batch out"]:
        """Return ``x W^T + bias`` in the dtype of ``x``."""
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"{type(self).__name__}: expected rows of {self.in_features} features, got "
                f"{x.shape[-1]}."
            )
        return NoGradient.apply(x, self)  # pyright: ignore[reportReturnType]

    def multiplied(self, x: Tensor) -> Tensor:
        """Return product plus bias, without a gradient."""
        out = self.product(x.float())
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)

    def product(self, x: Shaped[Tensor, "*batch in"]) -> Shaped[Tensor, "*batch out"]:
        """Return ``x W^T`` without a gradient, block of outputs by block."""
        wide, step = x.float(), max(1, BLOCK // max(self.in_features, 1))
        parts = [slice(i, i + step) for i in range(0, self.out_features, step)]
        products = [functional.linear(wide, self.rows(part)) for part in parts]
        return torch.cat(products, -1).to(x.dtype)


class StackLinear(UnpackedLinear):
    """A linear layer whose weight is a sum of blocks: signs times the product of thin matrices.

    The weight is ``sum_i sign_i * (left_i @ right_i) / scale``. The first blocks alone are a
    coarser weight: ``use`` sets how many are added. Thin matrices are held as the bits of float16
    numbers, scales as those of bfloat16.

    Parameters
    ----------
    in_features : int
        Number of inputs of the layer.
    out_features : int
        Number of outputs of the layer.
    levels : int
        Number of blocks.
    level_rank : int
        Rank of the thin product of each block.
    bias : bool
        Whether the layer has a bias.
    """

    signs: Tensor
    left: Tensor
    right: Tensor
    scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, levels: int, level_rank: int, bias: bool = True
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.levels = levels
        n_bytes = packed_length(in_features, 1)
        self.register_buffer("signs", torch.zeros(levels, out_features, n_bytes, dtype=torch.uint8))
        for name, shape in (
            ("left", (levels, out_features, level_rank)),
            ("right", (levels, level_rank, in_features)),
            ("scale", (in_features,)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int16))

    def extra_repr(self) -> str:
        """Return sizes and the number of added blocks."""
        return f"{self.in_features}, {self.out_features}, {self.levels} of {len(self.signs)} blocks"

    def use(self, levels: int) -> None:
        """Use only the first blocks from now on."""
        if not 1 <= levels <= len(self.signs):
            raise ShapeError(
                f"StackLinear.use: expected 1 to {len(self.signs)} blocks, got {levels}."
            )
        self.levels = levels

    def rows(self, part: Any) -> Float[Tensor, "row in"]:
        """Return some rows of the weight, in float32."""
        first = slice(0, self.levels)
        left, right = (x.view(torch.float16).float() for x in (self.left, self.right))
        signs = unpack(self.signs[first, part], 1, self.in_features).float() * 2 - 1
        scale = self.scale.view(torch.bfloat16).float()
        return (signs * (left[first, part] @ right[first])).sum(0) / scale


class CodebookLinear(UnpackedLinear):
    """A linear layer whose weights are entries of codebooks that rows share.

    The weight is ``scale_i * book[owner_i][code_ij]``. Codebooks are held as the bits of float16
    numbers, scales as those of bfloat16.

    Parameters
    ----------
    in_features : int
        Number of inputs of the layer.
    out_features : int
        Number of outputs of the layer.
    book_bits : int
        A codebook has ``2^book_bits`` entries.
    books : int
        Codebooks that the rows share.
    bias : bool
        Whether the layer has a bias.
    """

    codes: Tensor
    book: Tensor
    owner: Tensor
    scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, book_bits: int, books: int, bias: bool = True
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.book_bits = book_bits
        n_bytes = packed_length(in_features, book_bits)
        self.register_buffer("codes", torch.zeros(out_features, n_bytes, dtype=torch.uint8))
        self.register_buffer("book", torch.zeros(books, 2**book_bits, dtype=torch.int16))
        self.register_buffer("owner", torch.zeros(out_features, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(out_features, dtype=torch.int16))

    def extra_repr(self) -> str:
        """Return sizes, bits and codebooks."""
        return (
            f"{self.in_features}, {self.out_features}, bits={self.book_bits}, "
            f"books={len(self.book)}"
        )

    def rows(self, part: Any) -> Float[Tensor, "row in"]:
        """Return some rows of the weight, in float32."""
        codes = unpack(self.codes[part], self.book_bits, self.in_features).long()
        book = self.book.view(torch.float16).float()[self.owner[part].long()]
        return self.scale[part].view(torch.bfloat16).float()[:, None] * book.gather(1, codes)
