"""Write and read numbers as bytes, for the payloads of codecs."""

from hashlib import blake2b
from math import prod
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.hashing import tensor_key

MOST_AXES, MOST_NUMBERS = 32, 1 << 40


def count_bytes(*numbers: int) -> bytes:
    """Return non-negative integers as bytes: seven bits in a byte, low bits first (LEB128)."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def shape_bytes(x: Tensor) -> bytes:
    """Return the bytes of a tensor's shape."""
    return count_bytes(x.ndim, *x.shape)


def float_bytes(x: Tensor) -> bytes:
    """Return the bytes of numbers as little-endian float32."""
    return x.to(torch.float32).contiguous().numpy().astype("<f4").tobytes()


def tensors_key(*tensors: Tensor) -> bytes:
    """Return an 8-byte fingerprint of the tensors of a fitted codec."""
    hashed = blake2b(digest_size=8)
    for x in tensors:
        hashed.update(tensor_key(x))
    return hashed.digest()


def bit_bytes(codes: np.ndarray, width: int) -> bytes:
    """Return the bytes of non-negative codes in ``width`` bits each, with the highest bit first."""
    shifts = np.arange(width - 1, -1, -1)
    return np.packbits((codes.reshape(-1, 1) >> shifts & 1).astype(np.uint8)).tobytes()


def gap_bytes(gaps: np.ndarray, low: int) -> bytes:
    """Return non-negative integers in Golomb-Rice code: unary quotients, then ``low`` bits each."""
    high = gaps >> low
    unary = np.ones(int(high.sum()) + len(gaps), dtype=np.uint8)
    unary[np.cumsum(high + 1) - 1] = 0
    size = count_bytes(len(unary))
    return size + np.packbits(unary).tobytes() + bit_bytes(gaps & (1 << low) - 1, low)


class Reader:
    """Sequential reader of a payload, which checks lengths before it allocates memory."""

    def __init__(self, owner: str, payload: bytes) -> None:
        self.owner, self.payload, self.at = owner, payload, 0

    def bytes(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if size > len(self.payload) - self.at:
            self.refuse(f"{size} bytes are missing at byte {self.at}")
        self.at += size
        return self.payload[self.at - size : self.at]

    def refuse(self, why: str) -> NoReturn:
        """Raise because ``encode`` cannot have written this payload."""
        raise StateError(f"{self.owner}.decode: {why}. Encode again with this version of sonde.")

    def count(self) -> int:
        """Return the next integer."""
        number = shift = 0
        while True:
            byte = self.bytes(1)[0]
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                self.refuse(f"a number before byte {self.at} is too large")

    def shape(self) -> tuple[int, ...]:
        """Return the next shape."""
        if (n_axes := self.count()) > MOST_AXES:
            self.refuse(f"a tensor has {n_axes} axes")
        shape = tuple(self.count() for _ in range(n_axes))
        if prod(shape) > MOST_NUMBERS:
            self.refuse(f"a tensor has the shape {shape}")
        return shape

    def floats(self, n: int) -> Tensor:
        """Return the next ``n`` float32 numbers."""
        return torch.from_numpy(np.frombuffer(self.bytes(4 * n), "<f4").astype(np.float32))

    def codes(self, n: int, width: int) -> np.ndarray:
        """Return the next ``n`` codes of ``width`` bits."""
        raw = np.frombuffer(self.bytes(-(-n * width // 8)), np.uint8)
        bits = np.unpackbits(raw)[: n * width].reshape(n, width).astype(np.int64)
        return bits @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))

    def gaps(self, n: int, low: int) -> np.ndarray:
        """Return the next ``n`` numbers that ``gap_bytes`` wrote."""
        n_bits = self.count()
        unary = np.unpackbits(np.frombuffer(self.bytes(-(-n_bits // 8)), np.uint8))[:n_bits]
        ends = np.flatnonzero(unary == 0)
        if len(ends) != n:
            self.refuse(f"expected {n} positions, got {len(ends)}")
        high = np.diff(ends, prepend=-1) - 1
        return (high << low) + self.codes(n, low)


def refuse_others(reader: Reader, key: bytes) -> None:
    """Raise if the next bytes are not the fingerprint of the reading codec."""
    if reader.bytes(len(key)) != key:
        raise StateError(
            f"{reader.owner}.decode: the stream was written by a codec that was fitted to other "
            "rows. Decode with the codec that encoded."
        )
