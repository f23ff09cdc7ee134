"""Round gradients randomly to powers of two (natural compression)."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sonde.compress._wire import Reader, bit_bytes, shape_bytes
from sonde.core.codec import Codec
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges

LOWEST, HIGHEST = -126, 127
"""Exponents of the normal numbers of float32."""


@final
@dataclass(frozen=True)
class NaturalCodec(Codec):
    """Each entry rounded randomly to a neighbouring power of two, without bias.

    For ``2^a <= |x| < 2^(a + 1)`` the upper power has the probability ``|x| / 2^a - 1``. Unbiased
    over seeds: ``E (C(x) - x)^2 <= x^2 / 8``. Magnitudes below ``2^-126`` become 0 or ``2^-126``.

    Range        float32 in the encoded shape; lossy.
    Cost         O(d) time; 9 bits for each entry: a sign and an exponent.
    Assumes      magnitudes up to ``2^127``; a new seed in each round and for each sender.

    Parameters
    ----------
    seed : int, default=0
        From 0; draws the rounding.

    Examples
    --------
    >>> import torch
    >>> NaturalCodec().decode(NaturalCodec().encode(torch.tensor([0.25, -8.0, 0.0])))
    tensor([ 0.2500, -8.0000,  0.0000])

    References
    ----------
    horvath2022natural
    """

    seed: int = 0
    paper: ClassVar[str] = "horvath2022natural"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"seed": 5})

    def __post_init__(self) -> None:
        check_ranges(self, seed=">= 0")

    def most_lost(self, x: Tensor) -> float:
        """Return 1, because a number just above a power of two may be doubled."""
        return 1.0

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, and a sign and an exponent for each entry."""
        size = x.reshape(-1).double().abs()
        if len(size) and float(size.max()) > 2.0**HIGHEST:
            raise InputError(
                f"NaturalCodec.encode: expected magnitudes up to 2^{HIGHEST}, got "
                f"{float(size.max()):.3g}. Scale the gradient down."
            )
        exponent = (torch.frexp(size).exponent - 1).clamp(min=LOWEST)
        lower = torch.where(size < 2.0**LOWEST, 0.0, _power(exponent))
        gap = torch.where(lower == 0, 2.0**LOWEST, lower)
        generator = torch.Generator().manual_seed(self.seed)
        up = torch.rand(len(size), generator=generator, dtype=torch.float64) < (size - lower) / gap
        code = torch.where(lower == 0, 0, exponent - LOWEST + 1) + up
        sign = (x.reshape(-1) < 0).to(torch.int64)
        return shape_bytes(x) + bit_bytes((sign * 256 + code).numpy(), 9)

    def unpack(self, payload: bytes) -> Tensor:
        """Return the powers of two."""
        reader = Reader("NaturalCodec", payload)
        shape = reader.shape()
        codes = torch.from_numpy(reader.codes(int(np.prod(shape)), 9))
        power = _power(codes % 256 + LOWEST - 1)
        size = torch.where(codes % 256 == 0, 0.0, power)
        return torch.where(codes >= 256, -size, size).float().reshape(shape)


def _power(exponent: Tensor) -> Tensor:
    """Return exact powers of two."""
    return torch.from_numpy(np.ldexp(1.0, exponent.numpy()))
