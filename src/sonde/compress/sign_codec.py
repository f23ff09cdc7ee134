"""Send the signs of a gradient and one scale (scaled sign)."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sonde.compress._wire import Reader, bit_bytes, float_bytes, shape_bytes
from sonde.core.codec import Codec


@final
@dataclass(frozen=True)
class SignCodec(Codec):
    """One bit for each entry: its sign, times the mean magnitude.

    Formula: ``C(x) = (|x|_1 / d) sign(x)``, where the sign of 0 counts as positive. The mean
    magnitude is the scale with the least squared error:
    ``|C(x) - x|^2 = |x|^2 - |x|_1^2 / d``. Biased: use it with ``error_feedback``.

    Range        float32 in the encoded shape; lossy.
    Cost         O(d) time; d / 8 bytes and one scale.
    Assumes      entries of one scale: encode each tensor alone, not all of them joined.

    Examples
    --------
    >>> import torch
    >>> SignCodec().decode(SignCodec().encode(torch.tensor([3.0, -1.0])))
    tensor([ 2., -2.])

    References
    ----------
    karimireddy2019error
    """

    paper: ClassVar[str] = "karimireddy2019error"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def most_lost(self, x: Tensor) -> float:
        """Return ``1 - |x|_1^2 / (d |x|^2)``."""
        flat = x.double().reshape(-1)
        square = float(flat.square().sum()) * len(flat)
        return 1 - float(flat.abs().sum()) ** 2 / square if square else 0.0

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, scale and signs."""
        flat = x.reshape(-1)
        scale = flat.double().abs().sum() / max(len(flat), 1)
        signs = (flat < 0).numpy().astype(np.int64)
        return shape_bytes(x) + float_bytes(scale) + bit_bytes(signs, 1)

    def unpack(self, payload: bytes) -> Tensor:
        """Return the scale with the sign of each entry."""
        reader = Reader("SignCodec", payload)
        shape, scale = reader.shape(), reader.floats(1)
        negative = reader.codes(int(np.prod(shape)), 1)
        return (scale * torch.from_numpy(1 - 2 * negative)).reshape(shape)
