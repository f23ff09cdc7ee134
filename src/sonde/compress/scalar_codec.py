"""Round each channel to a grid between its extremes: the baseline for feature codecs."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._range_coder import read_table, table_bytes
from sonde.compress._wire import Reader, bit_bytes, count_bytes, float_bytes, shape_bytes
from sonde.core.codec import Codec
from sonde.core.ranges import check_ranges

PLAIN, CODED = 0, 1


@final
@dataclass(frozen=True)
class ScalarCodec(Codec):
    """Each entry rounded to one of ``2^bits`` values between its channel's extremes.

    A channel is an index of the last axis. Codes are written by a range coder with one table of how
    often each occurs, or in ``bits`` bits each if that is shorter.

    Range        float32 in the encoded shape; off by half a step of the channel at most.
    Cost         O(n) time; at most ``bits`` bits an entry, and two numbers for each channel.
    Assumes      channels without outliers, which would widen their steps.

    Parameters
    ----------
    bits : int, default=8
        1 to 8.

    Examples
    --------
    >>> import torch
    >>> codec = ScalarCodec(bits=2)
    >>> codec.decode(codec.encode(torch.tensor([[0.0], [0.9], [3.0]]))).flatten().tolist()
    [0.0, 1.0, 3.0]

    References
    ----------
    choi2018deep
    """

    bits: int = 8
    paper: ClassVar[str] = "choi2018deep"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"bits": 3}, {"bits": 1})

    def __post_init__(self) -> None:
        check_ranges(self, bits="[1, 8]")

    def most_lost(self, x: Tensor) -> float:
        """Return the largest fraction of the energy lost by rounding: half a step per entry."""
        rows = _channel_rows(x)
        if not rows.numel():
            return 0.0
        half = (rows.amax(0) - rows.amin(0)) / (2**self.bits - 1) / 2
        norm = float(rows.square().sum())
        return float(half.square().sum()) * len(rows) / norm if norm else 0.0

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, extremes and codes."""
        rows = _channel_rows(x)
        low, high = (rows.amin(0), rows.amax(0)) if rows.numel() else rows.new_zeros(2, 0)
        step = _steps(low, high, self.bits)
        codes = ((rows - low) / step).round().to(torch.int64).numpy().reshape(-1)
        counts = np.bincount(codes, minlength=2**self.bits)
        tables = np.broadcast_to(np.maximum(counts, 1e-9), (len(codes), len(counts)))
        coded = count_bytes(*counts.tolist()) + table_bytes("ScalarCodec", codes, tables)
        plain = bit_bytes(codes, self.bits)
        kind, body = (PLAIN, plain) if len(plain) <= len(coded) else (CODED, coded)
        head = shape_bytes(x) + count_bytes(self.bits, kind)
        return head + float_bytes(low) + float_bytes(high) + body

    def unpack(self, payload: bytes) -> Tensor:
        """Return the values of the codes."""
        reader = Reader("ScalarCodec", payload)
        shape, bits, kind = reader.shape(), reader.count(), reader.count()
        n = int(np.prod(shape))
        width = (shape[-1] if shape else 1) if n else 0
        low, high = (reader.floats(width).double() for _ in range(2))
        if kind == CODED:
            counts = np.array([reader.count() for _ in range(2**bits)], dtype=np.float64)
            codes = read_table(reader, np.broadcast_to(np.maximum(counts, 1e-9), (n, len(counts))))
        else:
            codes = reader.codes(n, bits)
        rows = torch.from_numpy(codes).reshape(-1, width) if n else torch.zeros(0, 0)
        return (low + rows * _steps(low, high, bits)).float().reshape(shape)


def _channel_rows(x: Tensor) -> Float[Tensor, "row channel"]:
    if not x.numel():
        return torch.zeros(0, 0, dtype=torch.float64)
    return x.reshape(-1, x.shape[-1] if x.ndim else 1).double()


def _steps(low: Tensor, high: Tensor, bits: int) -> Float[Tensor, "channel"]:
    step = (high - low) / (2**bits - 1)
    return torch.where(step > 0, step, 1.0)
