"""Send randomly chosen entries of a gradient, recovered from a seed (random-k)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sonde.compress._wire import Reader, count_bytes, float_bytes, shape_bytes
from sonde.core.cache_rule import kept_count
from sonde.core.codec import Codec
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed


@renamed(keep="share")
@final
@dataclass(frozen=True)
class RandomKCodec(Codec):
    """Entries that a seed selects, multiplied by d / k so that the mean is unbiased.

    Unbiased over seeds: ``E C(x) = x`` and ``E |C(x) - x|^2 = (d/k - 1) |x|^2``. The stream holds
    the seed and no places. Without ``scaled`` it is a contraction, fit for ``error_feedback``.

    Range        float32 in the encoded shape; lossy.
    Cost         O(d) time; 4 bytes for each drawn value, and the seed.
    Assumes      a new seed in each round and for each sender.

    Parameters
    ----------
    keep : float, default=0.01
        Fraction of the entries that is sent, in (0, 1], rounded up.
    scaled : bool, default=True
        Multiply by d / k: unbiased. Leave off with error feedback.
    seed : int, default=0
        From 0; draws the entries.

    Examples
    --------
    >>> import torch
    >>> codec = RandomKCodec(keep=0.5, seed=1)
    >>> codec.decode(codec.encode(torch.ones(4))).sum()
    tensor(4.)

    References
    ----------
    stich2018sparsified
    """

    keep: float = 0.01
    scaled: bool = True
    seed: int = 0
    paper: ClassVar[str] = "stich2018sparsified"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"keep": 0.4}, {"keep": 0.3, "scaled": False})

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1]", seed=">= 0")

    def most_lost(self, x: Tensor) -> float:
        """Return the loss if all of ``x`` were in the worst entry."""
        k = kept_count(self.keep, x.numel())
        return max(1.0, (x.numel() / max(k, 1) - 1) ** 2 if self.scaled else 0.0)

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, count, seed and values."""
        flat = x.reshape(-1)
        k = kept_count(self.keep, len(flat))
        factor = len(flat) / max(k, 1) if self.scaled else 1.0
        values = flat[_drawn(self.seed, len(flat), k)].double() * factor
        return shape_bytes(x) + count_bytes(k, self.seed) + float_bytes(values)

    def unpack(self, payload: bytes) -> Tensor:
        """Return zeros with the sent values at the positions that the seed selects."""
        reader = Reader("RandomKCodec", payload)
        shape, k, seed = reader.shape(), reader.count(), reader.count()
        flat = torch.zeros(shape).reshape(-1)
        flat[_drawn(seed, len(flat), k)] = reader.floats(k)
        return flat.reshape(shape)


def _drawn(seed: int, n: int, k: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k]
