"""Round a gradient randomly to levels of its norm (QSGD)."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sonde.compress._wire import Reader, bit_bytes, count_bytes, float_bytes, shape_bytes
from sonde.core.codec import Codec
from sonde.core.errors import InputError


@final
@dataclass(frozen=True)
class QsgdCodec(Codec):
    """Each entry rounded up or down randomly to a level of the norm, without bias.

    Formula: ``C(x)_i = |x| sign(x_i) l_i / s``, where ``l_i`` is ``s |x_i| / |x|`` rounded down, or
    up with the probability of its fraction. Unbiased over seeds:
    ``E |C(x) - x|^2 <= min(d / s^2, sqrt(d) / s) |x|^2``.

    Range        float32 in the encoded shape; lossy.
    Cost         O(d) time; ``log2(2 s + 1)`` bits for each entry, rounded up, and the norm.
    Assumes      a new seed in each round and for each sender.
    Differs      from the paper: a fixed number of bits for each level, no Elias code.

    Parameters
    ----------
    levels : int, default=7
        Levels above 0, s; 7 take four bits.
    seed : int, default=0
        From 0; draws the rounding.

    Examples
    --------
    >>> import torch
    >>> QsgdCodec(levels=5).decode(QsgdCodec(levels=5).encode(torch.tensor([3.0, -4.0])))
    tensor([ 3., -4.])

    References
    ----------
    alistarh2017qsgd
    """

    levels: int = 7
    seed: int = 0
    paper: ClassVar[str] = "alistarh2017qsgd"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"levels": 1}, {"levels": 100, "seed": 3})

    def __post_init__(self) -> None:
        if not 1 <= self.levels < 1 << 24 or self.seed < 0:
            raise InputError(
                f"QsgdCodec: expected levels from 1 to {(1 << 24) - 1} and seed from 0, got "
                f"{self.levels!r} and {self.seed!r}."
            )

    def most_lost(self, x: Tensor) -> float:
        """Return d / s^2, the loss if every entry is off by a whole level."""
        return x.numel() / self.levels**2

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, number of levels, norm and levels."""
        flat = x.reshape(-1).double()
        norm = flat.norm()
        exact = flat.abs() * self.levels / norm if norm > 0 else flat
        draw = torch.rand(len(flat), generator=_generator(self.seed), dtype=torch.float64)
        level = (exact.floor() + (draw < exact - exact.floor())).clamp(max=self.levels)
        codes = (level * flat.sign()).to(torch.int64).numpy() + self.levels
        head = shape_bytes(x) + count_bytes(self.levels) + float_bytes(norm)
        return head + bit_bytes(codes, _width(self.levels))

    def unpack(self, payload: bytes) -> Tensor:
        """Return the levels times the norm."""
        reader = Reader("QsgdCodec", payload)
        shape, levels, norm = reader.shape(), reader.count(), reader.floats(1).double()
        codes = reader.codes(int(np.prod(shape)), _width(levels)) - levels
        return (norm * torch.from_numpy(codes) / levels).float().reshape(shape)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _width(levels: int) -> int:
    return (2 * levels).bit_length()
