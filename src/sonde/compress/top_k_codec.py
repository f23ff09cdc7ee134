"""Send the largest entries of a gradient (top-k)."""

from dataclasses import dataclass
from math import log2
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sonde.compress._wire import Reader, count_bytes, float_bytes, gap_bytes, shape_bytes
from sonde.core.cache_rule import kept_count
from sonde.core.codec import Codec
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed


@renamed(keep="share")
@final
@dataclass(frozen=True)
class TopKCodec(Codec):
    """The entries of largest magnitude, unchanged, with all others set to 0.

    Biased: use it with ``error_feedback``. Theorem: ``|C(x) - x|^2 <= (1 - k/d) |x|^2`` for d
    entries, k of them kept.

    Range        float32 in the encoded shape; lossy.
    Cost         O(d log d) time; 4 bytes for each kept value, and about
                 ``log2(d / k) + 1.5`` bits for its place.
    Assumes      finite numbers; of equal magnitudes the earlier entry is kept.
    Differs      from the paper: a share of the entries, rounded up, not a threshold from a sample.

    Parameters
    ----------
    keep : float, default=0.01
        Fraction of the entries that is sent, in (0, 1], rounded up.

    Examples
    --------
    >>> import torch
    >>> codec = TopKCodec(keep=0.5)
    >>> codec.decode(codec.encode(torch.tensor([3.0, -0.5, 1.0, -4.0])))
    tensor([ 3.,  0.,  0., -4.])

    References
    ----------
    aji2017sparse
    """

    keep: float = 0.01
    paper: ClassVar[str] = "aji2017sparse"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"keep": 0.4}, {"keep": 1.0})

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1]")

    def most_lost(self, x: Tensor) -> float:
        """Return 1 - k/d."""
        return 1 - kept_count(self.keep, x.numel()) / max(x.numel(), 1)

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, count, gaps between kept positions, and values."""
        flat = x.reshape(-1)
        k = kept_count(self.keep, len(flat))
        order = torch.argsort(flat.abs(), descending=True, stable=True)[:k]
        index = order.sort().values
        gaps = np.diff(index.numpy(), prepend=-1) - 1
        places = gap_bytes(gaps, _low_bits(len(flat), k))
        return shape_bytes(x) + count_bytes(k) + places + float_bytes(flat[index])

    def unpack(self, payload: bytes) -> Tensor:
        """Return zeros with the kept values at their positions."""
        reader = Reader("TopKCodec", payload)
        shape, k = reader.shape(), reader.count()
        flat = torch.zeros(shape).reshape(-1)
        index = np.cumsum(reader.gaps(k, _low_bits(len(flat), k)) + 1) - 1
        flat[torch.from_numpy(index)] = reader.floats(k)
        return flat.reshape(shape)


def _low_bits(n: int, k: int) -> int:
    """Return the number of raw low bits of a gap, for ``k`` of ``n`` evenly spaced positions."""
    return max(int(log2(max(0.69 * n / max(k, 1), 1))), 0)
