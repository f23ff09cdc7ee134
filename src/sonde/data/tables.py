"""JSONL, CSV and Parquet files as rows: streamed once, then reached by byte offset or row group."""

import csv
import io
import json
import threading
from abc import abstractmethod
from array import array
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int

from sonde.core.errors import InputError, reason_of
from sonde.data.sources import Row, Source, Walk
from sonde.files.places import Place

MAX_LINE_BYTES = 256 * 2**20
PARQUET_ROWS = 256
_CSV_LOCK = threading.Lock()


def _offsets() -> "array[int]":
    return array("q")


@dataclass
class _Index:
    """Start, end, line and record index of each record in a text file."""

    starts: "array[int]" = field(default_factory=_offsets)
    ends: "array[int]" = field(default_factory=_offsets)
    lines: "array[int]" = field(default_factory=_offsets)
    numbers: "array[int]" = field(default_factory=_offsets)
    n_bad: int = 0

    def add(self, start: int, end: int, line: int) -> None:
        """Add a record."""
        self.numbers.append(len(self.numbers) + self.n_bad)
        self.starts.append(start)
        self.ends.append(end)
        self.lines.append(line)


class _Lines(Source):
    """A text file whose records start at known byte offsets.

    A walk through the file fills an index. The index of a whole walk is kept until another whole
    walk replaces it, so that somebody who looks at the first rows alone takes nothing away.
    """

    def __init__(self, path: Path, skip_bad: bool) -> None:
        self.path, self.name, self.skip_bad = path, path.name, skip_bad
        self._index, self._is_whole = _Index(), False

    @property
    def n_bad(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of broken records that were skipped."""
        return self._index.n_bad

    def rows(self) -> Iterator[Row]:
        """Yield the readable records."""
        index = _Index()
        if not self._is_whole:
            self._index = index
        yield from self._walk(index)
        self._index, self._is_whole = index, True

    def labels(self, column: str) -> Iterator[Any]:
        """Yield a column of every record."""
        return (row.get(column) for row in self.rows())

    @abstractmethod
    def _walk(self, index: _Index) -> Iterator[Row]:
        """Yield the records and add each to the index."""

    @property
    def base(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def where(self, index: int) -> str:
        """Return file and line for messages."""
        return f"{self.name} {self.place(index)}"

    def place(self, index: int) -> str:
        """Return the line, from 1."""
        return f"line {self._index.lines[index]}"

    def numbers(self, rows: Int[np.ndarray, "_row"]) -> Int[np.ndarray, "_row"]:
        """Return the indices of rows among all records, broken ones included, from 0."""
        return np.array(self._index.numbers, dtype=np.int64)[rows]

    def _bad(self, index: _Index, line: int, why: str) -> None:
        if not self.skip_bad:
            raise InputError(
                f"{self.path} line {line}: {why}. Fix the line, or pass skip_bad=True "
                "(--skip-bad) to skip such lines."
            )
        index.n_bad += 1

    def _raw(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            for i in range(start, stop):
                start = self._index.starts[i]
                file.seek(start)
                yield i, file.read(self._index.ends[i] - start)


@final
class JsonLines(_Lines):
    """One JSON object per line."""

    rows_differ = True

    def _walk(self, index: _Index) -> Iterator[Row]:
        """Yield the object of each line; empty lines are skipped."""
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(_bounded(file, self.path), start=1):
                start, offset = offset, offset + len(line)
                if not line.strip():
                    continue
                row, why = _parsed(line)
                if row is None:
                    self._bad(index, number, why)
                    continue
                index.add(start, offset, number)
                yield row

    def take(self, start: int, stop: int) -> list[Row]:
        """Read the lines again."""
        out: list[Row] = []
        for i, line in self._raw(start, stop):
            row, why = _parsed(line)
            if row is None:
                raise InputError(f"{self.where(i)}: {why}: the file changed while it was read.")
            out.append(row)
        return out


@final
class CsvFile(_Lines):
    """Comma-separated values (tabs in ``.tsv``) with standard quoting and a header."""

    def __init__(self, path: Path, skip_bad: bool) -> None:
        super().__init__(path, skip_bad)
        self._separator = "\t" if path.suffix.lower() == ".tsv" else ","
        self._header: list[str] = []

    def _walk(self, index: _Index) -> Iterator[Row]:
        """Yield each record as text values by the names in the header."""
        header: list[str] = []
        with self.path.open("rb") as file:
            if file.read(len(BOM_UTF8)) != BOM_UTF8:
                file.seek(0)
            lines = _CountedLines(file, self.path)
            while (record := self._next(lines, index)) is not None:
                values, start, number = record
                if not values:
                    continue
                if not header:
                    header = self._header = self._names(values)
                elif len(values) != len(header):
                    self._bad(index, number, f"expected {len(header)} fields, got {len(values)}")
                else:
                    index.add(start, lines.offset, number)
                    yield dict(zip(header, values, strict=True))

    def take(self, start: int, stop: int) -> list[Row]:
        """Read the records again."""
        out: list[Row] = []
        for i, raw in self._raw(start, stop):
            lines = _CountedLines(io.BytesIO(raw), self.path)
            record = self._next(lines, self._index)
            if record is None or len(record[0]) != len(self._header):
                raise InputError(f"{self.where(i)}: the file changed while it was read.")
            out.append(dict(zip(self._header, record[0], strict=True)))
        return out

    def _next(self, lines: "_CountedLines", index: _Index) -> tuple[list[str], int, int] | None:
        start, number = lines.offset, lines.number + 1
        try:
            with _long_fields():
                return next(csv.reader(lines, delimiter=self._separator)), start, number
        except StopIteration:
            return None
        except (csv.Error, UnicodeDecodeError) as error:
            self._bad(index, number, reason_of(error))
            return [], start, number

    def _names(self, values: list[str]) -> list[str]:
        names = [v.strip() for v in values]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise InputError(
                f"{self.path}: expected distinct column names, got {twice} more than once."
            )
        return names


@final
class ParquetFile(Source):
    """A Parquet file, read in batches of rows."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._starts = [0]
        metadata = self._open().metadata
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._walk, self._first = Walk(self.rows), 0

    @property
    def base(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def where(self, index: int) -> str:
        """Return file and row for messages."""
        return f"{self.name} {self.place(index)}"

    def place(self, index: int) -> str:
        """Return the row, from 0."""
        return f"row {index}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows, a bounded number of them in memory."""
        yield from self._from(0)

    def take(self, start: int, stop: int) -> list[Row]:
        """Continue after the last row read, or start at the row group of the first one."""
        group = bisect_right(self._starts, start, hi=len(self._starts) - 1) - 1
        position = self._first + self._walk.position
        if not self._starts[group] <= position <= start:
            self._walk, self._first = Walk(partial(self._from, group)), self._starts[group]
        return self._walk.take(start - self._first, stop - self._first, str(self.path))

    def labels(self, column: str) -> Iterator[Any]:
        """Yield one column."""
        for batch in self._batches(columns=[column]):
            yield from batch.column(0).to_pylist()

    def _from(self, group: int) -> Iterator[Row]:
        groups = list(range(group, len(self._starts) - 1))
        for batch in self._batches(row_groups=groups):
            yield from batch.to_pylist()

    def _batches(self, **parts: Any) -> Iterator[Any]:
        """Yield batches of some columns or row groups; damaged ones raise an InputError."""
        import pyarrow as pa

        batches = self._open().iter_batches(batch_size=PARQUET_ROWS, **parts)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{self.path} is a damaged Parquet file: {reason_of(error)}"
                ) from None
            yield batch

    def _open(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            is_distant = isinstance(self.path, Place)
            return pq.ParquetFile(self.path.open("rb") if is_distant else self.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{self.path} cannot be read as a Parquet file: {reason_of(error)}"
            ) from None


class _CountedLines:
    """Lines of a file as text, counting bytes and lines."""

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        self._lines, self.offset, self.number = _bounded(file, path), file.tell(), 0

    def __iter__(self) -> "_CountedLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.offset += len(line)
        self.number += 1
        return line.decode("utf-8")


def _bounded(file: io.BufferedIOBase, path: Path) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{path} line {number}: expected at most {MAX_LINE_BYTES >> 20} MiB in a line, got "
                "more. Put each item on a line of its own, and large values into files beside it."
            )
        yield line


def _parsed(line: bytes) -> tuple[Row | None, str]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return None, reason_of(error)
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON ({error})"
    if not isinstance(row, dict):
        return None, f"expected a JSON object, got {type(row).__name__}"
    return row, ""


@contextmanager
def _long_fields() -> Iterator[None]:
    with _CSV_LOCK:
        before = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            yield
        finally:
            csv.field_size_limit(before)
