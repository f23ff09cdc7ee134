"""A memory-mapped Arrow file, whose columns become tensors without a copy."""

import mmap
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.errors import StoreError
from sonde.store.column import TORCH_TYPES
from sonde.store.layout import AGAIN, REPAIR

DAMAGE = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    pa.ArrowException,
)

_ARROW_NAMES = {
    "float": "float32",
    "double": "float64",
    "halffloat": "float16",
    "uint16": "bfloat16",
}


class MappedFile:
    """A committed file in private pages: writing to a tensor does not change the file.

    Parameters
    ----------
    path : Path
    size : int
        Bytes that were committed.
    crc32 : int or None, default=None
        Checksum of these bytes; None skips the check, which takes longer than reading.

    Raises
    ------
    StoreError
        If the file is missing, has another size or other bytes, or is no Arrow file.
    """

    def __init__(self, path: Path, size: int, crc32: int | None = None) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    raise StoreError(
                        f"Store: {path} does not have the {size} bytes that were committed. {AGAIN}"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if crc32 is not None and zlib.crc32(self._map) != crc32:
                raise StoreError(f"Store: {path} has other bytes than were committed. {REPAIR}")
            buffer = pa.py_buffer(self._map)
            self._address = buffer.address
            self._reader = pa.ipc.open_file(pa.BufferReader(buffer))
        except FileNotFoundError as error:
            raise StoreError(f"Store: {path} is missing. {AGAIN}") from error
        except DAMAGE as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"Store: {path} cannot be read: {error}. {REPAIR}") from error

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self._reader.schema

    @property
    def n_batches(self) -> int:
        """Number of record batches."""
        return self._reader.num_record_batches

    def batch(self, i: int, full: bool = False) -> pa.RecordBatch:
        """Return a record batch whose buffers lie inside the mapped file."""
        found = self._reader.get_batch(i)
        found.validate(full=full)
        return found

    def tensor(self, column: pa.Array, dtype: str) -> Tensor:
        """Return the rows of a column, as stored in the file."""
        width, values = column.type.list_size, column.flatten()
        if len(values) != len(column) * width or values.null_count:
            raise ValueError("a column of rows has empty values")
        kind = TORCH_TYPES[dtype]
        if not len(values):
            return torch.empty(0, width, dtype=kind)
        start = self.start(values, kind.itemsize)
        flat = torch.frombuffer(self._map, dtype=kind, count=len(values), offset=start)
        return flat.reshape(-1, width)

    def start(self, values: pa.Array, itemsize: int) -> int:
        """Return the byte offset at which values begin."""
        start = values.buffers()[1].address - self._address + values.offset * itemsize
        if not 0 <= start <= len(self._map) - len(values) * itemsize or start % itemsize:
            raise ValueError("a column lies outside of its file")
        return start

    def elements(self, dtype: str) -> np.ndarray:
        """Return the whole file as numbers of one type; bfloat16 as its 16 bits."""
        kind = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        return np.frombuffer(self._map, dtype=kind, count=len(self._map) // kind.itemsize)


class OpenFiles:
    """Files that stay open, the same for all threads; the one that was opened first is let go.

    Parameters
    ----------
    most : int
        How many stay open.
    """

    def __init__(self, most: int) -> None:
        self._most, self._files = most, dict[Path, MappedFile]()
        self._lock = threading.Lock()

    def get(self, path: Path, opened: Callable[[], MappedFile]) -> MappedFile:
        """Return a file, opened by ``opened`` unless it is open."""
        with self._lock:
            if path not in self._files:
                while len(self._files) >= self._most:
                    del self._files[next(iter(self._files))]
                self._files[path] = opened()
            return self._files[path]


def number_column(file: MappedFile, part: pa.RecordBatch, name: str) -> Tensor:
    """Return a column with one or several numbers for each example."""
    column = part.column(name)
    if not pa.types.is_fixed_size_list(column.type):
        return torch.from_numpy(np.array(column))
    kind = str(column.type.value_type)
    word = _ARROW_NAMES.get(kind, kind)
    if word in TORCH_TYPES:
        return file.tensor(column, word)
    values = np.array(column.flatten())
    return torch.from_numpy(values).reshape(-1, column.type.list_size)


def integer_column(part: pa.RecordBatch, name: str) -> Tensor:
    """Return a column of integers.

    Raises
    ------
    StoreError
        If the column is missing, has empty values, or holds other values.
    """
    try:
        column = part.column(name)
        if column.null_count or not pa.types.is_integer(column.type):
            raise ValueError(f"expected whole numbers, got {column.type}")
        return torch.from_numpy(np.asarray(column).astype(np.int64))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"Store: column {name!r} is missing or damaged: {error}.") from error
