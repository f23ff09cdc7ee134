"""Rows by number: the file and the place of each row, and one gather for each file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.batch import SiteSchema
from sonde.core.errors import InputError, StoreError
from sonde.store._mapped import DAMAGE, MappedFile
from sonde.store.column import TORCH_TYPES, SiteColumn
from sonde.store.layout import AGAIN, REPAIR, row_file
from sonde.store.volume import Volume

FILES_OPEN = 256


@dataclass(frozen=True)
class _Place:
    """Which file a record batch lies in, and its number there."""

    path: Path
    size: int
    number: int
    column: str


class Shelf:
    """The rows of one site over all files of a store.

    Parameters
    ----------
    volumes : list of Volume
        One for each data set, in order.
    key : str
    """

    def __init__(self, volumes: list[Volume], key: str) -> None:
        self._schema, places, counts = _listed(volumes, key)
        self._places = places
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = self._ends - np.asarray(counts, dtype=np.int64)
        paths = list(dict.fromkeys(p.path for p in places))
        self._file_of = np.asarray([paths.index(p.path) for p in places], dtype=np.int64)
        self._sizes = {paths.index(p.path): (p.path, p.size) for p in places}
        self._starts: np.ndarray = np.full(len(places), -1, dtype=np.int64)
        self._open: dict[int, MappedFile] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: Any) -> Float[Tensor, "_row _dim"]:
        """Return rows in the order asked for."""
        index = self._checked(rows)
        dim, kind = self._schema.dim, TORCH_TYPES[self._schema.dtype]
        out = torch.empty(len(index), dim, dtype=kind)
        target = out.view(torch.uint16).numpy() if kind == torch.bfloat16 else out.numpy()
        chunk = np.searchsorted(self._ends, index, side="right")
        files = self._file_of[chunk]
        columns = np.arange(dim)
        for number in np.unique(files).tolist():
            mine = np.flatnonzero(files == number)
            elements = self._opened(number)
            start = self._starts[chunk[mine]] + (index[mine] - self._firsts[chunk[mine]]) * dim
            target[mine] = elements[start[:, None] + columns]
        return out

    def who(self, rows: Any) -> list[tuple[str, int, int]]:
        """Return (key as hexadecimal digits, occurrence, position) of rows."""
        index = self._checked(rows)
        found = []
        for row, chunk in zip(index, np.searchsorted(self._ends, index, "right"), strict=True):
            file, at = self._file(int(self._file_of[chunk])), int(row - self._firsts[chunk])
            try:
                part = file.batch(self._places[chunk].number)
                names = ("example", "occurrence", "position")
                example, occurrence, position = (part.column(n)[at].as_py() for n in names)
                found.append((bytes.hex(example), int(occurrence), int(position)))
            except DAMAGE as error:
                raise _damaged(file, error) from error
        return found

    def _checked(self, rows: Any) -> np.ndarray:
        index = np.atleast_1d(np.asarray(rows))
        whole = index.size == 0 or np.issubdtype(index.dtype, np.integer)
        if index.ndim != 1 or not whole:
            raise InputError(f"Store.take: expected whole numbers of rows, got {rows!r:.60}.")
        index = index.astype(np.int64)
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise InputError(
                f"Store.take: expected rows from 0 to {len(self) - 1}, got "
                f"{int(index.min())} to {int(index.max())}."
            )
        return index

    def _file(self, number: int) -> MappedFile:
        if number not in self._open:
            while len(self._open) >= FILES_OPEN:
                del self._open[next(iter(self._open))]
            self._open[number] = MappedFile(*self._sizes[number])
        return self._open[number]

    def _opened(self, number: int) -> np.ndarray:
        """Return the elements of a file; first find where its record batches begin."""
        file = self._file(number)
        mine = np.flatnonzero(self._file_of == number)
        if self._starts[mine[0]] < 0:
            dtype = self._schema.dtype
            width = TORCH_TYPES[dtype].itemsize
            try:
                for chunk in mine.tolist():
                    place = self._places[chunk]
                    column = file.batch(place.number).column(place.column)
                    count = int(self._ends[chunk] - self._firsts[chunk])
                    if len(column) != count or column.type.list_size != self._schema.dim:
                        raise ValueError("a record batch has another number of rows")
                    self._starts[chunk] = file.start(column.flatten(), width) // width
            except DAMAGE as error:
                self._starts[mine] = -1
                raise _damaged(file, error) from error
        return file.elements(self._schema.dtype)


def _damaged(file: MappedFile, error: Exception) -> StoreError:
    return StoreError(f"Store: {file.path} is damaged: {error}. {REPAIR}")


def _listed(volumes: list[Volume], key: str) -> tuple[SiteSchema, list[_Place], list[int]]:
    """Return the kind of rows, where every record batch of them lies, and its number of rows."""
    places: list[_Place] = []
    counts: list[int] = []
    found: list[SiteSchema] = []
    for volume in volumes:
        for table, column in _columns(volume, key):
            found.append(column.schema)
            for span in volume.manifest.ranges():
                path = row_file(volume.directory, table, span)
                try:
                    said = volume.record(span)["files"][table]
                    rows, size = [int(n) for n in said["rows"]], int(said["size_bytes"])
                except (LookupError, TypeError, ValueError) as error:
                    raise StoreError(f"Store: the record of {path} is damaged. {AGAIN}") from error
                for number, n in enumerate(rows):
                    if n > 0:
                        places.append(_Place(path, size, number, column.name))
                        counts.append(n)
    return found[0], places, counts


def _columns(volume: Volume, key: str) -> list[tuple[str, SiteColumn]]:
    tables = volume.manifest.tables.items()
    return [(table, c) for table, columns in tables for c in columns if c.schema.key == key]
