"""Small integers packed into bytes, in a layout independent of version and processor.

Widths that divide a byte are laid side by side, the first in the lowest bits. Others are cut into
planes of one bit each, so that no number lies across two bytes.
"""

import sys
from functools import cache

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from sonde.core.errors import InputError, ShapeError

WIDEST = 8
WIDE = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def packed_length(n: int, bits: int) -> int:
    """Return the packed length of ``n`` numbers in bytes."""
    if 8 % bits == 0:
        return -(-n * bits // 8)
    return bits * -(-n // 8)


def pack(codes: Integer[Tensor, "*batch n"], bits: int) -> UInt8[Tensor, "*batch bytes"]:
    """Return numbers in ``[0, 2^bits)`` as bytes, with each row separate.

    Parameters
    ----------
    codes : Integer[Tensor, "*batch n"]
        Whole numbers, one row for each row of the weight.
    bits : int
        1 to 8.

    Raises
    ------
    InputError
        If a number does not fit, or there is no such width.

    Examples
    --------
    >>> pack(torch.tensor([1, 2, 3]), 4).tolist(), pack(torch.tensor([5, 1, 7]), 3).tolist()
    ([33, 3], [7, 4, 5])
    """
    _check_bits(bits)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 2**bits:
        raise InputError(
            f"pack: expected numbers in [0, {2**bits}) for {bits} bits, got {int(codes.min())} to "
            f"{int(codes.max())}."
        )
    if 8 % bits == 0:
        return _joined(codes, bits)
    planes = [_joined((codes >> i) & 1, 1) for i in range(bits)]
    return torch.cat(planes, -1)


def unpack(packed: UInt8[Tensor, "*batch bytes"], bits: int, n: int) -> UInt8[Tensor, "*batch n"]:
    """Return the numbers that ``pack`` packed.

    Parameters
    ----------
    packed : UInt8[Tensor, "*batch bytes"]
        Bytes that ``pack`` returned.
    bits : int
        Number of bits of a number.
    n : int
        Numbers in a row.

    Raises
    ------
    ShapeError
        If the rows have another length than ``n`` numbers take.
    """
    _check_bits(bits)
    if packed.shape[-1] != packed_length(n, bits):
        raise ShapeError(
            f"unpack: expected {packed_length(n, bits)} bytes for {n} numbers of {bits} bits, got "
            f"{packed.shape[-1]}. The file is of another layer, or cut off."
        )
    if 8 % bits == 0:
        return _parted(packed, bits, n)
    planes = packed.chunk(bits, -1) if n else (packed,) * bits
    total = torch.zeros(*packed.shape[:-1], n, dtype=torch.uint8, device=packed.device)
    for i, plane in enumerate(planes):
        total |= _parted(plane, 1, n) << i
    return total


def _joined(codes: Tensor, bits: int) -> Tensor:
    each = 8 // bits
    n = codes.shape[-1]
    short = -n % each
    wide = torch.nn.functional.pad(codes.to(torch.uint8), (0, short))
    wide = wide.reshape(*codes.shape[:-1], (n + short) // each, each)
    total = torch.zeros(wide.shape[:-1], dtype=torch.uint8, device=codes.device)
    for i in range(each):
        total |= wide[..., i] << (i * bits)
    return total


def _parted(packed: Tensor, bits: int, n: int) -> Tensor:
    return _bytes(_spread(packed, bits))[..., :n]


def _spread(packed: Tensor, bits: int) -> Tensor:
    """Return a wider integer for each byte, whose bytes are the packed numbers."""
    if bits >= 4:  # faster than a table
        return _moved_apart(packed, bits)
    table = _table(bits).to(packed.device)
    return table.index_select(0, packed.flatten().int()).view(packed.shape)


@cache
def _table(bits: int) -> Tensor:
    return _moved_apart(torch.arange(256, dtype=torch.uint8), bits)


def _moved_apart(packed: Tensor, bits: int) -> Tensor:
    """Move the halves of all bytes apart at once, then the halves of the halves."""
    width = gap = 8 // bits * 8
    wide, half = packed.to(WIDE[width]), 4
    while gap > 8:
        gap //= 2
        mask = sum((2**half - 1) << i for i in range(0, width, gap))
        wide = (wide << (gap - half)).bitwise_or_(wide).bitwise_and_(mask)
        half //= 2
    return wide


def _bytes(wide: Tensor) -> UInt8[Tensor, "*batch n"]:
    """Return the bytes of wide integers, with the lowest byte first."""
    as_bytes = wide.view(torch.uint8)
    if sys.byteorder == "big":
        as_bytes = as_bytes.unflatten(-1, (-1, wide.element_size())).flip(-1).flatten(-2)
    return as_bytes


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise InputError(f"pack: expected 1 to {WIDEST} bits, got {bits}.")
