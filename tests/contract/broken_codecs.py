"""Codecs with one planted fault each."""

import struct
from dataclasses import dataclass
from typing import ClassVar

import torch

from sonde.core import Codec, StateError


@dataclass(frozen=True)
class Plain(Codec):
    """The numbers as they are, with a fault."""

    fault: str = ""
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def pack(self, x):
        first = torch.rand(()) if self.fault == "random" else torch.zeros(())
        shape = struct.pack(f"<{x.ndim + 1}I", x.ndim, *x.shape)
        return struct.pack("<f", float(first)) + shape + x.contiguous().numpy().tobytes()

    def unpack(self, payload):
        (n_axes,) = struct.unpack_from("<I", payload, 4)
        shape = struct.unpack_from(f"<{n_axes}I", payload, 8)
        found = torch.frombuffer(
            bytearray(payload[8 + 4 * n_axes :] + b"\0" * 4), dtype=torch.float
        )
        found = found[:-1].reshape(shape).clone()
        if self.fault == "loses":
            return found * 0.9
        return found.flatten() if self.fault == "shape" else found


@dataclass(frozen=True)
class Trusting(Codec):
    """Numbers whose stream has a length and no checksum, or neither."""

    looks: bool = False

    def pack(self, x):
        return x.reshape(-1).numpy().tobytes()

    def unpack(self, payload):
        whole = bytearray(payload + bytes(4))
        return torch.frombuffer(whole, dtype=torch.float32)[:-1].clone()

    def encode(self, x):
        payload = self.pack(x)
        return struct.pack("<I", len(payload)) + payload

    def decode(self, stream):
        if self.looks and (
            len(stream) < 4 or struct.unpack_from("<I", stream)[0] != len(stream) - 4
        ):
            raise StateError("cut off")
        return self.unpack(stream[4 : 4 + len(stream[4:]) // 4 * 4])
