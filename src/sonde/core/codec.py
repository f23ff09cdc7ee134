"""Codecs, which turn a tensor into bytes and back: base class and checksums of streams.

A codec is a frozen dataclass with ``pack`` and ``unpack``. The base wraps what they write with the
codec's name and a checksum, so that a damaged stream, or a stream of another codec, is refused
before it is unpacked.
"""

import struct
import zlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sonde.core.errors import InputError, StateError
from sonde.core.keywords import InitSignature, checked_new

MAGIC = b"SNDC"
VERSION = 1
_HEAD = struct.Struct("<4sBII")


class Codec(ABC):
    """Conversion of a tensor to bytes, and of the bytes to an equal or a similar tensor.

    Subclasses are final frozen dataclasses. ``encode`` is deterministic: randomness comes from a
    field ``seed``.
    """

    call_form: ClassVar[str] = "{name}().encode(x)"
    __new__ = checked_new
    __signature__ = InitSignature()

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    @property
    def alphabet(self) -> int | None:
        """Size of the vocabulary if the codec takes token ids; None if it takes numbers."""
        return None

    @property
    def width(self) -> int | None:
        """Required length of the last axis, if the codec was fitted to rows; None if any length."""
        return None

    @abstractmethod
    def pack(self, x: Tensor) -> bytes:
        """Return the bytes of a checked tensor: finite float32, or ids in int64."""

    @abstractmethod
    def unpack(self, payload: bytes) -> Tensor:
        """Return the tensor from the bytes that ``pack`` wrote."""

    def most_lost(self, x: Tensor) -> float:
        """Return the largest fraction of the squared norm of ``x`` that a round trip may lose."""
        return 0.0

    def encode(self, x: Tensor) -> bytes:
        """Return a tensor as a stream with header and checksum.

        Parameters
        ----------
        x : Tensor
            Finite floating-point numbers of any shape, coded as float32; token ids in one dimension
            where the codec has an alphabet.

        Raises
        ------
        InputError
            If the tensor holds values that cannot be coded.
        """
        payload = self.pack(self._checked(x))
        head = MAGIC, VERSION, zlib.crc32(type(self).__name__.encode())
        return _HEAD.pack(*head, zlib.crc32(payload, _seed(*head))) + payload

    def decode(self, stream: bytes) -> Tensor:
        """Return the tensor of a stream: float32 in the encoded shape, or token ids in int64.

        Raises
        ------
        StateError
            If the stream is damaged, or was written by another codec or version.
        """
        return self.unpack(self.opened(stream))

    def opened(self, stream: bytes) -> bytes:
        """Return the payload of a stream, after a check of its checksum, codec and version.

        Raises
        ------
        StateError
        """
        name = type(self).__name__
        if len(stream) < _HEAD.size or stream[:4] != MAGIC:
            raise StateError(
                f"{name}.decode: expected a stream that begins with {MAGIC!r}, got "
                f"{bytes(stream[:4])!r} in {len(stream)} bytes. Pass the complete result of "
                "encode."
            )
        magic, version, owner, checksum = _HEAD.unpack_from(stream)
        payload = bytes(stream[_HEAD.size :])
        if zlib.crc32(payload, _seed(magic, version, owner)) != checksum:
            raise StateError(
                f"{name}.decode: the checksum of {len(stream)} bytes is wrong: the stream is cut "
                "off or damaged. Take it from a backup, or encode again."
            )
        if version != VERSION or owner != zlib.crc32(name.encode()):
            raise StateError(
                f"{name}.decode: expected a stream of {name}, version {VERSION}, got a "
                f"stream of another codec or version ({version}). Decode with the codec that "
                "encoded."
            )
        return payload

    def _checked(self, x: Tensor) -> Tensor:
        name = type(self).__name__
        if self.alphabet is None:
            if not x.is_floating_point():
                raise InputError(f"{name}.encode: expected floating-point numbers, got {x.dtype}.")
            single = x.detach().cpu().to(torch.float32)
            if not bool(single.isfinite().all()):
                bad = int((~single.isfinite()).sum())
                raise InputError(
                    f"{name}.encode: expected numbers that are finite in float32, got {bad} that "
                    "are not. Skip the step whose gradient overflowed."
                )
            if self.width is not None and x.shape[-1:] != (self.width,):
                raise InputError(
                    f"{name}.encode: expected a last axis of size {self.width}, as in the rows it "
                    f"was fitted to, got shape {tuple(x.shape)}."
                )
            return single
        if x.ndim != 1 or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise InputError(
                f"{name}.encode: expected token ids in one dimension, got {x.dtype} of shape "
                f"{tuple(x.shape)}. Flatten the ids in the order in which they are to be read."
            )
        ids = x.detach().cpu().to(torch.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.alphabet:
            raise InputError(
                f"{name}.encode: expected ids from 0 to {self.alphabet - 1}, got "
                f"{int(ids.min())} to {int(ids.max())}. Use the tokenizer of this model."
            )
        return ids


def _seed(magic: bytes, version: int, owner: int) -> int:
    """Return the checksum of a header, with which the payload's checksum starts."""
    return zlib.crc32(_HEAD.pack(magic, version, owner, 0))
