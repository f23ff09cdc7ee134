"""Small whole numbers as bytes, in a layout of our own that no version or processor changes.

Widths that divide a byte are laid side by side, the first in the lowest bits. Others are cut into
planes of one bit each, so that no number lies across two bytes.
"""

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from sonde.core.errors import InputError, ShapeError

WIDEST = 8


def packed_length(n: int, bits: int) -> int:
    """Return the bytes that ``n`` numbers take."""
    if 8 % bits == 0:
        return -(-n * bits // 8)
    return bits * -(-n // 8)


def pack(codes: Integer[Tensor, "*batch n"], bits: int) -> UInt8[Tensor, "*batch bytes"]:
    """Return numbers in ``[0, 2^bits)`` as bytes, each row on its own.

    Parameters
    ----------
    codes : Integer[Tensor, "*batch n"]
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
    """Return the numbers that ``pack`` laid down.

    Parameters
    ----------
    packed : UInt8[Tensor, "*batch bytes"]
    bits : int
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
    mask = 2**bits - 1
    parts = [(packed >> (i * bits)) & mask for i in range(8 // bits)]
    return torch.stack(parts, -1).flatten(-2)[..., :n]


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise InputError(f"pack: expected 1 to {WIDEST} bits, got {bits}.")
