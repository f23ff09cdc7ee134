"""Store the older tokens of a key-value cache in a few bits (KIVI, GEAR).

For long texts where no token may be forgotten. Below 4 bits add outliers and a rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sonde.core.cache_packing import CachePacking, PackedTokens
from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True)
class QuantCache(CachePacking):
    """Keys rounded per channel and values per token, plus outliers and a low-rank matrix.

    A few channels of keys are large for every token, so each channel of a chunk of tokens has its
    own scale; a value is rounded by groups of channels of its token. With ``outliers`` the largest
    and smallest numbers of each such channel or token are kept as they are; with ``rank`` what
    rounding lost is added back as a matrix of that rank, for each head.

    Formula: ``X ~ scale * code + offset + S + L R'``.

    Range        an error of at most half a scale for each number without outliers and rank.
    Cost         bits / 16 of a half-precision cache, 32 / group bits more for scales and offsets,
                 ``rank (chunk + width)`` half numbers and 6 bytes for each outlier; the whole cache
                 is unpacked for one layer at a time at every step.
    Assumes      that no key or value is NaN or infinite.
    Differs      from the papers: any chunk and width; scales are bfloat16 rounded so that nothing
                 is clipped; factors are from a whole singular value decomposition, in bfloat16.

    Parameters
    ----------
    bits : {2, 3, 4, 8}, default=4
        Number of bits of a stored value.
    group : int, default=32
        Channels of a value that share a scale. The last group may be short.
    outliers : float, default=0.0
        Share of the numbers of a channel of keys, or of a token's value, that are kept as they are:
        half of it the largest, half the smallest, rounded up.
    rank : int, default=0
        Rank of the matrix that is added back.
    chunk : int, default=64
        Tokens that are packed together; a channel of keys has one scale in a chunk.
    recent : int, default=64
        Newest tokens in full precision.

    Examples
    --------
    >>> QuantCache(bits=2, outliers=0.02, rank=4).setting
    '2 bit, 2 % outliers, rank 4'

    References
    ----------
    kang2024gear
    """

    bits: int = 4
    group: int = 32
    outliers: float = 0.0
    rank: int = 0
    chunk: int = 64
    recent: int = 64
    paper: ClassVar[str] = "kang2024gear"
    variants: ClassVar[dict[str, str]] = {"outliers=0, rank=0": "liu2024kivi"}
    examples: ClassVar[tuple[dict, ...]] = (
        {"chunk": 3, "recent": 1, "group": 3},
        {"bits": 3, "chunk": 5, "recent": 1},
        {"bits": 2, "outliers": 0.2, "rank": 1, "chunk": 4, "recent": 0},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, bits=(2, 3, 4, 8), group=">= 1", rank=">= 0", outliers="[0, 1)")

    @property
    def setting(self) -> str:
        """Bits, outliers and rank."""
        parts = [f"{self.bits} bit"]
        parts += [f"{100 * self.outliers:g} % outliers"] if self.outliers else []
        parts += [f"rank {self.rank}"] if self.rank else []
        return ", ".join(parts)

    def pack(
        self,
        keys: Float[Tensor, "row head token width"],
        values: Float[Tensor, "row head token width2"],
        real: Bool[Tensor, "row token"],
    ) -> "PackedKeysValues":
        """Return the tokens in packed form."""
        along_tokens = self._packed(keys.mT, real, keys.shape[2], along_tokens=True)
        return PackedKeysValues(
            along_tokens, self._packed(values, real, self.group, along_tokens=False)
        )

    def _packed(self, x: Tensor, real: Tensor, group: int, *, along_tokens: bool) -> "PackedMatrix":
        """Return matrices packed in groups along their last axis."""
        own = real[:, None, None, :] if along_tokens else real[:, None, :, None]
        own = own.expand(x.shape)
        exact = x.double()
        count = own.sum(-1, keepdim=True).clamp(min=1)
        mean = torch.where(own, exact, 0.0).sum(-1, keepdim=True) / count
        exact = torch.where(own, exact, mean)  # padding moves no scale
        rest, places, kept = _without_outliers(exact, self.outliers)
        codes, scale, offset = _rounded(rest, self.bits, group)
        width = x.shape[-1]
        packed = PackedMatrix(
            _bytes_of(codes, self.bits), scale, offset, places, kept.to(x.dtype), None, None,
            self.bits, group, width, x.dtype,
        )  # fmt: skip
        if not self.rank:
            return packed
        lost = torch.where(own, exact - packed.unpack().double(), 0.0)
        u, s, vh = torch.linalg.svd(lost, full_matrices=False)
        rank = min(self.rank, s.shape[-1])
        left = (u[..., :rank] * s[..., None, :rank]).to(torch.bfloat16)
        return replace(packed, left=left, right=vh[..., :rank, :].to(torch.bfloat16))


@final
@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """Matrices whose rows are rounded in groups of numbers.

    Parameters
    ----------
    codes : UInt8[Tensor, "row head line byte"]
    scale, offset : Tensor (row, head, line, group), bfloat16
    places : Tensor (row, head, line, outlier), int16 or int32
        Where outliers stand in their line.
    kept : Tensor (row, head, line, outlier)
        The outliers.
    left, right : Tensor (row, head, line, rank) and (row, head, rank, number), or None
    bits, group, width : int
        Bits of a code, numbers of a group and of a line.
    dtype : torch.dtype
        Of the numbers.
    """

    codes: UInt8[Tensor, "row head line byte"]
    scale: Tensor
    offset: Tensor
    places: Tensor
    kept: Tensor
    left: Tensor | None
    right: Tensor | None
    bits: int
    group: int
    width: int
    dtype: torch.dtype

    def unpack(self) -> Float[Tensor, "row head line number"]:
        """Return the unpacked numbers."""
        codes = _codes_of(self.codes, self.bits, self.width)
        each = torch.arange(self.width, device=codes.device) // self.group
        x = codes * self.scale.float()[..., each] + self.offset.float()[..., each]
        x = x.scatter(-1, self.places.long(), self.kept.float())
        if self.left is not None and self.right is not None:
            x = x + self.left.float() @ self.right.float()
        return x.to(self.dtype)

    def over(self, change: Callable[[Tensor], Tensor]) -> "PackedMatrix":
        """Return the matrices after a change of rows or heads."""
        held: dict[str, Any] = {
            f.name: change(x)
            for f in fields(self)
            if isinstance(x := getattr(self, f.name), Tensor)
        }
        return replace(self, **held)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        held = [getattr(self, f.name) for f in fields(self)]
        return sum(x.nbytes for x in held if isinstance(x, Tensor))


@final
@dataclass(frozen=True, eq=False)
class PackedKeysValues(PackedTokens):
    """Packed keys, with a channel in each line, and values, with a token in each line."""

    keys: PackedMatrix
    values: PackedMatrix

    def unpack(self, heads: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return keys and values of some heads."""
        keys, values = (x.over(lambda y: y[:, heads]) for x in (self.keys, self.values))
        return keys.unpack().mT, values.unpack()

    def over_rows(self, change: Callable[[Tensor], Tensor]) -> "PackedKeysValues":
        """Return the packed tokens after a change of the rows."""
        return PackedKeysValues(self.keys.over(change), self.values.over(change))

    @property
    def size_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.size_bytes + self.values.size_bytes


def _without_outliers(x: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return lines with their extreme numbers replaced, and these numbers' positions."""
    n = x.shape[-1]
    each = min(-int(-share * n // 2), n // 2)  # on each side, rounded up
    large, small = x.topk(each, -1).indices, x.topk(each, -1, largest=False).indices
    places = torch.cat([large, small], -1)
    kept = x.gather(-1, places)
    left = torch.ones_like(x, dtype=torch.bool).scatter(-1, places, False)
    count = left.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(left, x, 0.0).sum(-1, keepdim=True) / count
    small_type = torch.int16 if n <= torch.iinfo(torch.int16).max else torch.int32
    return torch.where(left, x, mean), places.to(small_type), kept


def _rounded(x: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and offsets of lines of numbers, in groups along the last axis.

    The offset is rounded down and the scale up, so that no number is clipped.
    """
    n = x.shape[-1]
    each = torch.arange(n, device=x.device) // group
    n_groups = -(-n // group)
    shape = *x.shape[:-1], n_groups
    index = each.expand(x.shape)
    low = torch.full(shape, torch.inf, dtype=x.dtype, device=x.device)
    high = torch.full(shape, -torch.inf, dtype=x.dtype, device=x.device)
    low, high = low.scatter_reduce(-1, index, x, "amin"), high.scatter_reduce(-1, index, x, "amax")
    offset = _toward(low, -torch.inf)
    scale = _toward((high - offset.double()) / (2**bits - 1), torch.inf)
    divisor = torch.where(scale == 0, 1.0, scale.double())[..., each]
    codes = ((x - offset.double()[..., each]) / divisor).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, offset


def _toward(x: Tensor, end: float) -> Tensor:
    """Return numbers in bfloat16, rounded towards plus or minus infinity."""
    near = x.to(torch.bfloat16)
    passed = near.double() > x if end < 0 else near.double() < x
    return torch.where(passed, torch.nextafter(near, torch.full_like(near, end)), near)


def _bytes_of(codes: UInt8[Tensor, "*axes number"], bits: int) -> UInt8[Tensor, "*axes byte"]:
    """Return codes packed into bytes, with the first code in the lowest bits.

    Codes fill words of the smallest number of whole bytes: one, or three for codes of 3 bits.
    """
    word = math.lcm(bits, 8)
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % (word // bits)))
    within = torch.arange(0, word, bits, device=codes.device)
    words = (padded.unflatten(-1, (-1, word // bits)).int() << within).sum(-1)
    each = torch.arange(0, word, 8, device=codes.device)
    return ((words[..., None] >> each) & 255).to(torch.uint8).flatten(-2)


def _codes_of(packed: UInt8[Tensor, "*axes byte"], bits: int, width: int) -> Tensor:
    """Return the codes of packed bytes, as float32."""
    word = math.lcm(bits, 8)
    each = torch.arange(0, word, 8, device=packed.device)
    words = (packed.unflatten(-1, (-1, word // 8)).int() << each).sum(-1)
    within = torch.arange(0, word, bits, device=packed.device)
    codes = (words[..., None] >> within) & (2**bits - 1)
    return codes.flatten(-2)[..., :width].float()
