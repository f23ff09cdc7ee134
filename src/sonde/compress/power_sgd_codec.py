"""Send a gradient as two thin matrices (PowerSGD)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from sonde.compress._wire import Reader, count_bytes, float_bytes, shape_bytes
from sonde.core.codec import Codec
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True, eq=False)
class PowerSgdCodec(Codec):
    """A low-rank approximation of the gradient, from one step of the power method.

    For a gradient M, the first axis against all others: ``P = M Q``, P made orthonormal,
    ``Q = M' P``; the stream holds P and Q and decodes to ``P Q'``. ``codec.after(stream)`` is the
    codec of the next round: it starts from this Q, so that rounds over slowly changing gradients
    come near the best matrix of the rank. Biased: use it with ``error_feedback``.

    Range        float32 in the encoded shape; lossy, except vectors and those tensors that
                 the two matrices would not make smaller.
    Cost         O(rank rows columns) time; 4 rank (rows + columns) bytes.
    Assumes      gradients near a matrix of low rank.
    Differs      from the paper: one sender; the orthonormal P is the sender's own.

    Parameters
    ----------
    rank : int, default=2
        Columns of P and Q.
    seed : int, default=0
        From 0; draws the Q of the first round.
    start : Tensor or None, default=None
        The Q to start from, in place of a drawn one.

    Examples
    --------
    >>> import torch
    >>> x = torch.outer(torch.arange(6.0), torch.tensor([1.0, -2.0, 0.5, 3.0]))
    >>> codec = PowerSgdCodec(rank=1)
    >>> bool(torch.allclose(codec.decode(codec.encode(x)), x, atol=1e-5))
    True

    References
    ----------
    vogels2019powersgd
    """

    rank: int = 2
    seed: int = 0
    start: Tensor | None = None
    paper: ClassVar[str] = "vogels2019powersgd"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"rank": 1, "seed": 4})

    def __post_init__(self) -> None:
        check_ranges(self, rank=">= 1", seed=">= 0")

    def most_lost(self, x: Tensor) -> float:
        """Return 1, because ``P P' M`` is a projection of M."""
        return 1.0

    def after(self, stream: bytes) -> "PowerSgdCodec":
        """Return the codec for the round after ``stream``, which starts from that round's Q."""
        reader = Reader("PowerSgdCodec", self.opened(stream))
        shape, rank = reader.shape(), reader.count()
        if not rank:
            return self
        n_rows, n_columns = _sides(shape)
        reader.floats(rank * n_rows)
        return replace(self, start=reader.floats(rank * n_columns).reshape(n_columns, rank))

    def pack(self, x: Tensor) -> bytes:
        """Return shape, rank, P and Q, or rank 0 and the raw numbers if these are smaller."""
        n_rows, n_columns = _sides(tuple(x.shape))
        rank = min(self.rank, n_rows, n_columns)
        if rank * (n_rows + n_columns) >= x.numel():
            return shape_bytes(x) + count_bytes(0) + float_bytes(x)
        matrix = x.reshape(n_rows, n_columns).double()
        p = torch.linalg.qr(matrix @ self._first(n_columns, rank)).Q
        head = shape_bytes(x) + count_bytes(rank)
        return head + float_bytes(p) + float_bytes(matrix.mT @ p)

    def unpack(self, payload: bytes) -> Tensor:
        """Return ``P Q'``, or the raw numbers."""
        reader = Reader("PowerSgdCodec", payload)
        shape, rank = reader.shape(), reader.count()
        if not rank:
            return reader.floats(torch.Size(shape).numel()).reshape(shape)
        n_rows, n_columns = _sides(shape)
        p = reader.floats(rank * n_rows).reshape(n_rows, rank)
        q = reader.floats(rank * n_columns).reshape(n_columns, rank)
        return (p.double() @ q.double().mT).float().reshape(shape)

    def _first(self, n_columns: int, rank: int) -> Tensor:
        if self.start is None:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randn(n_columns, rank, generator=generator, dtype=torch.float64)
        if self.start.shape != (n_columns, rank):
            raise InputError(
                f"PowerSgdCodec.encode: expected a start of shape {(n_columns, rank)}, got "
                f"{tuple(self.start.shape)}. Keep one codec for each tensor."
            )
        return self.start.double()


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of a tensor as a matrix; a vector is one row."""
    size = torch.Size(shape).numel()
    if len(shape) < 2 or not size:
        return 1, size
    return shape[0], size // shape[0]
