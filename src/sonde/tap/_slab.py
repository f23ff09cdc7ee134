"""Memory for rows that a user may keep, apart from the heap that the forward works in.

Small tensors that outlive a forward pin the heap around them: rows of 12 KiB kept from each forward
of a 12-layer transformer made the process grow by 8 MiB a forward, sixty times what was kept.
"""

import mmap

import torch
from torch import Tensor

SLAB_BYTES = 2**18
ALIGNED = 64


class Slab:
    """Copies small tensors of the CPU into pages of their own, many into one piece."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, x: Tensor) -> Tensor:
        """Return a copy of a small tensor outside the heap; anything else as it is."""
        if x.device.type != "cpu" or x.is_nested or not 0 < x.nbytes <= SLAB_BYTES:
            return x
        n_bytes = x.nbytes
        if self._used + n_bytes > len(self._piece):
            self._piece = torch.frombuffer(mmap.mmap(-1, SLAB_BYTES), dtype=torch.uint8)
            self._used = 0
        place = self._piece[self._used : self._used + n_bytes].view(x.dtype).view(x.shape)
        self._used += -(-n_bytes // ALIGNED) * ALIGNED
        return place.copy_(x)
