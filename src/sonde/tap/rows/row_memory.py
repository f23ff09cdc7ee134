"""Memory for rows that a user may keep, separate from the forward pass's heap.

Small tensors that outlive a forward pin the heap around them: rows of 12 KiB kept from each forward
of a 12-layer transformer made the process grow by 8 MiB a forward, sixty times what was kept.
"""

import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

PIECE_BYTES = 2**18
ALIGNED = 64


class RowMemory:
    """Copies small CPU tensors into separate memory pages, many into one piece.

    Several threads may use one memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._piece: mmap.mmap | None = None
        self._used = PIECE_BYTES

    def __reduce__(self) -> tuple[type["RowMemory"], tuple[()]]:
        """Copy and pickle as an empty memory: a tapped model may be copied."""
        return RowMemory, ()

    def keep(self, x: Tensor) -> Tensor:
        """Return a copy of a small tensor outside the heap, or any other value unchanged."""
        if not x.is_cpu or x.is_nested or not 0 < x.nbytes <= PIECE_BYTES:
            return x
        return self.place(x.shape, x.dtype).copy_(x)

    def copy(self, x: Tensor) -> Tensor:
        """Return a copy of a tensor; the copy of a small tensor lies outside the heap."""
        kept = x if x.requires_grad else self.keep(x)
        return x.clone() if kept is x else kept

    def keep_each(self, x: Tensor) -> list[Tensor]:
        """Return a copy of each member of ``x``, small ones outside the heap."""
        small = x.is_cpu and 0 < x[:1].nbytes <= PIECE_BYTES
        return [self.keep(member) if small else member.clone() for member in x.unbind()]

    def place(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return an unfilled tensor with memory of its own, of at most ``PIECE_BYTES``.

        Autograd and pickle know of no other tensor in the same piece of memory.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.place(shape, dtype)
        n = math.prod(shape)
        with self._lock:
            piece, start = self._piece, self._used
            if piece is None or start + n * dtype.itemsize > PIECE_BYTES:
                piece, start = _pages(), 0
            self._piece = piece
            self._used = -(-(start + n * dtype.itemsize) // ALIGNED) * ALIGNED
        return torch.frombuffer(piece, dtype=dtype, count=n, offset=start).view(shape)


def _pages() -> mmap.mmap:
    """Return memory that a forked child process does not share."""
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    return mmap.mmap(-1, PIECE_BYTES, flags=private) if private else mmap.mmap(-1, PIECE_BYTES)
