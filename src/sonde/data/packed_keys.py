"""Keys of many examples in one block of memory; a list takes a Python object for each."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsIndex, overload

import numpy as np
from jaxtyping import Int

HASH_BYTES = 16


class PackedKeys(Sequence[bytes]):
    """Sequence of byte strings that are stored in one buffer.

    An element is copied out of the buffer as ``bytes`` whenever it is read.
    """

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._content, self._ends = bytearray(), array("q", [0])
        for key in keys:
            self.append(key)

    def append(self, key: bytes) -> None:
        """Add a key at the end."""
        self._content += key
        self._ends.append(len(self._content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)  # pyright: ignore[reportUnknownArgumentType]

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: SupportsIndex) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return bytes(self._content[self._ends[at] : self._ends[at + 1]])

    def occurrences(self) -> Int[np.ndarray, "_key"]:
        """Return how many equal keys come before each key."""
        ends = np.frombuffer(self._ends, dtype=np.int64)
        if len(self) and bool((np.diff(ends) == HASH_BYTES).all()):
            halves = np.frombuffer(bytes(self._content), dtype=np.uint64).reshape(-1, 2)
            order = np.lexsort((halves[:, 0], halves[:, 1]))  # stable
            is_new = np.r_[True, (np.diff(halves[order].view(np.int64), axis=0) != 0).any(1)]
            places = np.arange(len(order))
            earlier = np.empty(len(order), dtype=np.int64)
            earlier[order] = places - np.maximum.accumulate(np.where(is_new, places, 0))
            return earlier
        seen = Counter[bytes]()
        numbers = array("q")
        for key in self:
            numbers.append(seen[key])
            seen[key] += 1
        return np.frombuffer(numbers, dtype=np.int64)
