"""Items of an iterator that can be iterated only once, kept in a temporary file."""

import os
import pickle
import tempfile
import weakref
from array import array
from collections import deque
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Final, final

from sonde.core.errors import InputError, reason_of

_END: Final = object()


@final
class Spooled:
    """The items of an iterator, any number of times: each is asked for once and written to disk.

    A run reads its data twice, once to list them and once for the model. The file lies in the
    folder for temporary files (``TMPDIR``) and is removed with this object.

    Parameters
    ----------
    items : iterator
        Iterator that is read to its end at the first pass.
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self.name = type(items).__name__
        self._items = items
        handle, path = tempfile.mkstemp(prefix="sonde-items-")
        os.close(handle)
        self._path, self._ends = Path(path), array("q", [0])
        weakref.finalize(self, self._path.unlink, missing_ok=True)

    def __iter__(self) -> Iterator[Any]:
        """Yield each item: from the file if an earlier pass came as far, else from the iterator."""
        number = 0
        with self._opened() as file:
            while True:
                if number + 1 < len(self._ends):
                    file.seek(self._ends[number])
                    size = self._ends[number + 1] - self._ends[number]
                    item = pickle.loads(file.read(size))
                else:
                    item = next(self._items, _END)
                    if item is _END:
                        return
                    file.seek(self._ends[-1])
                    self._ends.append(self._ends[-1] + file.write(self._content(item)))
                yield item
                number += 1

    def _opened(self) -> FileIO:
        try:
            return FileIO(self._path, "r+b")
        except FileNotFoundError:
            raise InputError(
                f"data: the items of a {self.name} lie in {self._path} on the machine of the "
                "command, and a worker elsewhere cannot read them. Pass a file or a list."
            ) from None

    def _content(self, item: Any) -> bytes:
        try:
            return pickle.dumps(item)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"data: item {len(self._ends) - 1} of a {self.name} cannot be written to the "
                f"temporary file that keeps it for the second pass: {reason_of(error)}. Pass a "
                "list, or a function that returns a new iterator."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        deque(self, maxlen=0)  # the iterator itself cannot be sent
        return _reopened, (self.name, self._path, self._ends)


def _reopened(name: str, path: Path, ends: "array[int]") -> Spooled:
    """Return the items of another process, which removes the file."""
    copy = Spooled.__new__(Spooled)
    copy.name, copy._items, copy._path, copy._ends = name, iter(()), path, ends
    return copy
