"""Token means for the sites of one forward pass, written to their final memory."""

from collections.abc import Hashable

import torch
from torch import Tensor

from sonde.tap.rows.means import Mean
from sonde.tap.rows.row_memory import PIECE_BYTES, RowMemory


class MeanWriter:
    """Writes means of the outputs of one forward pass, site by site, into reserved memory.

    The ``Mean`` of the first output of a shape serves later outputs too. Making a place costs as
    much as a small mean, so as many places are made at once as the forward before took. A place is
    handed out once; places of two forwards share nothing.

    Parameters
    ----------
    memory : RowMemory
    """

    def __init__(self, memory: RowMemory) -> None:
        self.memory = memory
        self._lanes: dict[Hashable, _Lane] = {}
        self.begin()

    @property
    def is_empty(self) -> bool:
        """True if no output of the last forward pass was averaged here."""
        return not self._lanes

    def again_as_before(self) -> None:
        """Begin a forward pass with the examples and included tokens of the previous one.

        The means of that forward are used again; there are places for as many outputs as it had.
        """
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.renew(self.memory)}

    def begin(self) -> None:
        """Begin a forward pass of other examples; reserve as much memory as the last one used."""
        self._expected = {lane.kind: lane.n_made - len(lane.free) for lane in self._lanes.values()}
        self._lanes = {}

    def again(self, key: Hashable, x: Tensor) -> Tensor | None:
        """Return the mean of an output in reserved memory, or None if none is free."""
        lane = self._lanes.get(key)
        if lane is None or not lane.free or not x.is_cpu:
            return None
        place, rows = lane.free.pop()
        lane.mean.write(x, place)
        return rows

    def first(self, key: Hashable, x: Tensor, mean: Mean) -> Tensor | None:
        """Return the mean of an output, or None if it is large or not on the CPU.

        Parameters
        ----------
        key : hashable
            Key that outputs must share to be averaged alike; it holds their shape and type.
        x : Tensor
            Shape (row, pos, dim).
        mean : Mean
            What averages outputs like this one.
        """
        n, _, dim = x.shape
        most = PIECE_BYTES // (n * dim * x.dtype.itemsize or PIECE_BYTES + 1)
        if not most or not x.is_cpu:
            return None
        lane = self._lanes.get(key)
        if lane is None:
            kind = len(self._lanes), dim, x.dtype
            lane = self._lanes[key] = _Lane(kind, n, mean, most)
        lane.make(self._expected.get(lane.kind, 1) - lane.n_made, self.memory)
        return self.again(key, x)


class _Lane:
    """Reserved memory for the means of outputs of one shape."""

    def __init__(self, kind: tuple[int, int, torch.dtype], n: int, mean: Mean, most: int) -> None:
        self.kind, self.n, self.mean, self.most = kind, n, mean, most
        self.free: list[tuple[Tensor, Tensor]] = []
        self.n_made = 0

    def renew(self, memory: RowMemory) -> bool:
        """Reserve as much memory as the previous forward pass used; False if it used none."""
        taken, self.n_made = self.n_made - len(self.free), 0
        if taken:
            self.make(taken, memory)
        return taken > 0

    def make(self, count: int, memory: RowMemory) -> None:
        """Reserve memory for later outputs, as much as one piece holds and at least one."""
        count = max(1, min(count, self.most))
        _, dim, dtype = self.kind
        places = memory.place((count, self.n, 1, dim), dtype)
        self.free = [*zip(places.unbind(), places.squeeze(2).unbind(), strict=True)]
        self.free.reverse()
        self.n_made += count
