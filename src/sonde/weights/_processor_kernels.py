"""Torch kernels that multiply by packed weights, each with its packing."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, ClassVar, final

import torch
from jaxtyping import BFloat16, Float, UInt8
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from sonde.weights.quant_linear import Grid

EYE = 64
"""Rows of an identity by which codes are read back from a private packing."""
BLOCK = 2**18
LANES = 32


class Kernel(ABC):
    """A weight in the packing of a kernel.

    Parameters
    ----------
    blocks : iterable of UInt8[Tensor, "part in"]
        Codes in parts of consecutive outputs; all parts but the last have a multiple of 64 outputs.
    scale, offset : BFloat16[Tensor, "out group"]
    group : int
    """

    about: ClassVar[str]
    few: int = sys.maxsize
    """Rows up to which the kernel itself is faster than unpacking; it is timed."""

    @abstractmethod
    def __init__(
        self,
        blocks: Iterable[UInt8[Tensor, "part in"]],
        scale: BFloat16[Tensor, "out group"],
        offset: BFloat16[Tensor, "out group"],
        group: int,
    ) -> None: ...

    @staticmethod
    @abstractmethod
    def fits(grid: "Grid", n_in: int, n_out: int) -> bool:
        """Return whether the kernel supports this grid and shape."""

    @abstractmethod
    def few_rows(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Return the product of a few rows and the weight in float32, by the kernel."""

    @abstractmethod
    def many_rows(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Return the product of many rows and the weight in float32, unpacked block by block."""

    @abstractmethod
    def codes(self) -> UInt8[Tensor, "out in"]:
        """Return the unpacked codes."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Bytes of the packing."""

    @classmethod
    def works(cls) -> bool:
        """Return whether torch and the processor support the kernel, by a small product."""
        codes = torch.zeros(16, 32, dtype=torch.uint8)
        one = torch.ones(16, 1, dtype=torch.bfloat16)
        try:
            cls([codes], one, one, 32).few_rows(torch.ones(1, 32))
        except (AttributeError, NotImplementedError):
            # a version without the operator; a build whose processor has no kernel for it
            return False
        return True


@final
class Int4(Kernel):
    """Four-bit codes in the private packing of the processor's kernel."""

    about = "bfloat16 rows by four-bit weights, groups of 32 to 256"
    groups: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)

    def __init__(self, blocks: Iterable[Tensor], scale: Tensor, offset: Tensor, group: int) -> None:
        # The kernel's packing holds 64 outputs together, or a divisor of 64. The whole weight as
        # int32 would leave holes in the memory of the process, eight times as large as the codes.
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        self.packed = torch.cat([pack(codes.to(torch.int32), 1) for codes in blocks])
        self.scales = torch.stack([scale.T, offset.T], -1).contiguous()
        self.group, self.n_in = group, 2 * self.packed.shape[1]
        half = half_of_packing()
        self.half = half if half and len(self.packed) % (2 * half) == 0 else 0

    @staticmethod
    def fits(grid: "Grid", n_in: int, n_out: int) -> bool:
        """Return whether the group size is supported by the kernel, and groups fill the rows."""
        aligned = n_in % grid.group == 0 and n_out % 16 == 0
        return grid.bits == 4 and grid.group in Int4.groups and aligned

    def few_rows(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Return the product in float32; the kernel multiplies in bfloat16."""
        return self._product(rows.bfloat16().contiguous(), self.scales).float()

    def many_rows(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Return the product in float32, or that of the kernel if its packing is unknown."""
        if self.half == 0:
            return self.few_rows(rows)
        x, n_out = rows.float(), self.scales.shape[1]
        out = x.new_empty(len(x), n_out)
        step = 2 * self.half * max(1, BLOCK // (2 * self.half * self.n_in))
        for start in range(0, n_out, step):
            part = slice(start, start + step)
            weight = _turned(self.packed[part], self.half).float().sub_(8)
            scale, offset = self.scales[:, part].float().permute(2, 0, 1)[:, :, None].contiguous()
            weight.unflatten(0, (-1, self.group)).mul_(scale).add_(offset)
            out[:, part] = x @ weight
        return out

    def codes(self) -> UInt8[Tensor, "out in"]:
        """Return the codes; if the packing is unknown, by a product with the identity."""
        if self.half:
            return _turned(self.packed, self.half).T.contiguous()
        ones, zeros = torch.ones_like(self.scales[..., 0]), torch.zeros_like(self.scales[..., 1])
        plain, code_parts = torch.stack([ones, zeros], -1), list[Tensor]()
        for start in range(0, self.n_in, EYE):
            # small whole numbers are exact in bfloat16
            rows = torch.eye(self.n_in, dtype=torch.bfloat16)[start : start + EYE]
            code_parts.append((self._product(rows, plain).T + 8).to(torch.uint8))
        return torch.cat(code_parts, 1)

    @property
    def n_bytes(self) -> int:
        """Bytes of codes and of scales."""
        return self.packed.untyped_storage().nbytes() + self.scales.untyped_storage().nbytes()

    def _product(self, rows: Tensor, scales: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, scales)


@cache
def half_of_packing() -> int:
    """Return the number of outputs side by side in the four-bit packing; 0 if unknown.

    The packing is private and differs between processors. A random weight is packed and read back
    under one assumption: for each input, a byte holds an output of the block's first half in its
    low bits and an output of the second half in its high bits.
    """
    codes = torch.randint(0, 16, (64, 96), generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    fits = (h for h in (32, 16) if torch.equal(_turned(packed, h).T.long(), codes))
    return next(fits, 0)


def _turned(packed: UInt8[Tensor, "out byte"], half: int) -> UInt8[Tensor, "in out"]:
    """Return the codes of some packed blocks of the four-bit kernel, transposed to (in, out)."""
    blocks = packed.reshape(-1, 2 * packed.shape[1], half).transpose(0, 1)
    return torch.stack([blocks & 15, blocks >> 4], 2).flatten(1)


@final
class Int8(Kernel):
    """Eight-bit codes with one scale for each row, as signed numbers."""

    about = "bfloat16 rows by eight-bit weights, one scale for each row of a weight"

    def __init__(self, blocks: Iterable[Tensor], scale: Tensor, offset: Tensor, group: int) -> None:
        self.signed = torch.cat([(codes ^ 128).view(torch.int8) for codes in blocks])
        self.scale, self.offset = scale[:, 0].contiguous(), offset[:, 0].float()

    @staticmethod
    def fits(grid: "Grid", n_in: int, n_out: int) -> bool:
        """Return whether each row has one scale, and a length that the kernel supports.

        With rows of 8, 24, 40 or 72 entries the kernel reads beyond them: wrong numbers, or a crash
        of the process. It raises nothing.
        """
        return grid.bits == 8 and grid.n_groups(n_in) == 1 and n_in % LANES == 0 and n_out > 0

    def few_rows(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Return the product in float32; the kernel multiplies in bfloat16."""
        few = rows.bfloat16().contiguous()
        return self._moved(torch.ops.aten._weight_int8pack_mm(few, self.signed, self.scale), rows)

    def many_rows(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Return the product in float32."""
        step = max(1, BLOCK // max(1, self.signed.shape[1]))
        parts = [functional.linear(rows.float(), part.float()) for part in self.signed.split(step)]
        return self._moved(torch.cat(parts, 1).mul_(self.scale.float()), rows)

    def _moved(self, made: Tensor, rows: Tensor) -> Tensor:
        return made.float().addcmul_(rows.float().sum(1, keepdim=True), self.offset)

    def codes(self) -> UInt8[Tensor, "out in"]:
        """Return the codes as unsigned numbers."""
        return self.signed.view(torch.uint8) ^ 128

    @property
    def n_bytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        kept = (self.signed, self.scale, self.offset)
        return sum(x.untyped_storage().nbytes() for x in kept)


KERNELS: dict[str, type[Kernel]] = {"int4": Int4, "int8": Int8}
