"""Places for the rows of one forward, which sites fill one after another."""

import torch
from torch import Tensor

from sonde.tap._slab import SLAB_BYTES, Slab

Shape = tuple[int, int, torch.dtype]


class Rack:
    """Hands out places in a slab; those of one shape in one forward lie side by side.

    Making a place costs as much as a small mean, so as many are made at once as the forward before
    took. A place is handed out once; those of two forwards share nothing.

    Parameters
    ----------
    slab : Slab
    """

    def __init__(self, slab: Slab) -> None:
        self.slab = slab
        self._taken: dict[Shape, int] = {}
        self.begin()

    def begin(self) -> None:
        """Forget the places of the forward before, but not how many it took."""
        self._expected, self._taken = self._taken, {}
        self._free: dict[Shape, list[Tensor]] = {}

    def place(self, n: int, dim: int, dtype: torch.dtype) -> Tensor | None:
        """Return an unfilled (n, dim) tensor of the CPU, or None where that is no small one."""
        key = n, dim, dtype
        taken = self._taken[key] = self._taken.get(key, 0) + 1
        free = self._free.get(key)
        if not free:
            most = SLAB_BYTES // (n * dim * dtype.itemsize or SLAB_BYTES + 1)
            count = min(max(1, self._expected.get(key, 1) - taken + 1), most)
            if not count:
                return None
            free = self._free[key] = [*self.slab.place((count, n, dim), dtype).unbind()]
            free.reverse()
        return free.pop()
