"""A memory-mapped Arrow file, whose columns become tensors without a copy."""

import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.errors import StoreError
from sonde.files.places import Place
from sonde.store.column import TORCH_TYPES
from sonde.store.layout import AGAIN, REPAIR

TAIL_BYTES = 8192
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
    sparse : bool, default=False
        In object storage, read only where the rows lie; ``load`` reads rows. Else a file in object
        storage is read as a whole.

    Raises
    ------
    StoreError
        If the file is missing, has another size or other bytes, or is no Arrow file.
    """

    def __init__(
        self, path: Path, size: int, crc32: int | None = None, sparse: bool = False
    ) -> None:
        self.path = path
        self._distant = path if sparse and isinstance(path, Place) else None
        try:
            distant = isinstance(path, Place)
            self._map = _distant_map(path, size, sparse) if distant else _map_of(path, size)
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
        record = self._reader.get_batch(i)
        record.validate(full=full)
        return record

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

    def load(self, starts: Sequence[int], stops: Sequence[int]) -> None:
        """Read spans of bytes of a sparse file; other files have all their bytes."""
        if self._distant is not None:
            _fill(self._map, self._distant, sorted(set(zip(starts, stops, strict=True))))

    def load_columns(self, columns: Iterable[pa.Array]) -> None:
        """Read whole columns of a record batch of a sparse file."""
        held = [b for column in columns for b in column.buffers() if b is not None]
        starts = [b.address - self._address for b in held]
        self.load(starts, [a + b.size for a, b in zip(starts, held, strict=True)])

    def elements(self, dtype: str) -> np.ndarray:
        """Return the whole file as numbers of one type; bfloat16 as its 16 bits."""
        kind = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        return np.frombuffer(self._map, dtype=kind, count=len(self._map) // kind.itemsize)


def _map_of(path: Path, size: int) -> mmap.mmap:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise _other_size(path, size)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _other_size(path: Path, size: int) -> StoreError:
    return StoreError(f"Store: {path} does not have the {size} bytes that were committed. {AGAIN}")


def _distant_map(place: Place, size: int, sparse: bool) -> mmap.mmap:
    """Return a map of an object, with all its bytes, or with what describes its batches alone."""
    if place.stat().st_size != size:
        raise _other_size(place, size)
    mapped = mmap.mmap(-1, size)
    if not sparse:
        for at, piece in place.pieces(0, size):
            mapped[at : at + len(piece)] = piece
        return mapped
    _fill(mapped, place, [(0, min(8, size)), (max(size - TAIL_BYTES, 8), size)])
    length = int.from_bytes(mapped[size - 10 : size - 6], "little")
    start = size - 10 - length
    if not start >= 8:
        raise ValueError("the footer is longer than the file")
    if start < size - TAIL_BYTES:
        _fill(mapped, place, [(start, size - TAIL_BYTES)])
    blocks = _blocks(mapped[start : start + length])
    if any(not 8 <= a <= b <= start for a, b in blocks):
        raise ValueError("a record batch lies outside of its file")
    _fill(mapped, place, blocks)
    return mapped


def _blocks(footer: bytes) -> list[tuple[int, int]]:
    """Return start and end of the description of each record batch: field 3 of Arrow's footer."""
    root = _number(footer, 0, 4)
    table = root - _number(footer, root, 4, signed=True)
    offset = _number(footer, table + 10, 2) if _number(footer, table, 2) > 10 else 0
    if not offset:
        return []
    vector = root + offset + _number(footer, root + offset, 4)
    blocks = []
    for i in range(_number(footer, vector, 4)):
        at = vector + 4 + 24 * i
        start = _number(footer, at, 8)
        blocks.append((start, start + _number(footer, at + 8, 4)))
    return blocks


def _number(content: bytes, at: int, n_bytes: int, signed: bool = False) -> int:
    if not 0 <= at <= len(content) - n_bytes:
        raise ValueError("the footer is damaged")
    return int.from_bytes(content[at : at + n_bytes], "little", signed=signed)


def _fill(found: mmap.mmap, place: Place, spans: Sequence[tuple[int, int]]) -> None:
    spans = [span for span in spans if span[0] < span[1]]
    if spans:
        for (start, stop), piece in zip(spans, place.ranges(spans), strict=True):
            found[start:stop] = piece


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
