"""A folder of rows: its manifest, its records, and its batches as written."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch

from sonde.core.batch import Batch, Head, SiteSchema
from sonde.core.errors import StoreError
from sonde.files.places import Place
from sonde.store._columns import EXTRA, SHAPE
from sonde.store._identity import is_of_arrays
from sonde.store._mapped import DAMAGE, MappedFile, OpenFiles, integer_column, number_column
from sonde.store.column import SiteColumn
from sonde.store.layout import (
    AGAIN,
    EXAMPLES,
    HEAD,
    RANGES,
    REPAIR,
    read_json,
    record_file,
    row_file,
    side_file,
)
from sonde.store.manifest import Manifest, is_whole, read_manifest

Span = tuple[int, int]
KEPT_OPEN = 1
SPARSE_OPEN = 64
AHEAD = ThreadPoolExecutor(2, "sonde-ahead")


class Volume:
    """The rows of one data set at some sites, in a folder.

    Parameters
    ----------
    directory : Path
    checked : bool, default=False
        Check the bytes of each file of rows when it is opened.

    Raises
    ------
    StoreError
        If the folder is not a store, or is damaged.
    """

    def __init__(self, directory: Path, checked: bool = False) -> None:
        self.directory, self._checked = directory, checked
        self.manifest: Manifest = read_manifest(directory)
        self._open = OpenFiles(KEPT_OPEN * (1 + len(self.manifest.tables)))
        self._records: dict[Span, dict[str, Any]] = {}
        self._sparse = OpenFiles(SPARSE_OPEN)
        self._ahead: dict[tuple[str, Span], Future[MappedFile]] = {}

    @property
    def schema(self) -> list[SiteSchema]:
        """The kinds of rows."""
        return [c.schema for columns in self.manifest.tables.values() for c in columns]

    def missing(self) -> list[Span]:
        """Return the ranges of units that are not committed."""
        written = {path.name for path in (self.directory / RANGES).glob("*.json")}
        spans = self.manifest.ranges()
        return [span for span in spans if record_file(self.directory, span).name not in written]

    def to_write(self) -> list[Span]:
        """Return the ranges of units that are not committed, or have lost a file."""
        spans = self.manifest.ranges()
        return [span for span in spans if not is_whole(self.directory, self.manifest, span)]

    def check_files(self) -> None:
        """Raise before reading if a file is missing or its size is wrong.

        Raises
        ------
        StoreError
            If a file is missing or has another size; the message names the first.
        """
        for table in (EXAMPLES, *self.manifest.tables):
            folder = row_file(self.directory, table, (0, 0)).parent
            sizes = {path.name: path.stat().st_size for path in folder.glob("*")}
            for span in self.manifest.ranges():
                path, size = row_file(self.directory, table, span), self._size(table, span)
                if path.name not in sizes:
                    raise StoreError(f"Store: {path} is missing. {AGAIN}")
                if sizes[path.name] != size:
                    raise StoreError(
                        f"Store: {path} does not have the {size} bytes that were committed. {AGAIN}"
                    )

    def record(self, span: Span) -> dict[str, Any]:
        """Return the record of a range, after a check.

        Raises
        ------
        StoreError
            If it is damaged, or of another plan.
        """
        record = self._records.get(span)
        return self._read_record(span) if record is None else record

    def _read_record(self, span: Span) -> dict[str, Any]:
        path = record_file(self.directory, span)
        try:
            record = read_json(path)
        except StoreError as error:
            raise StoreError(f"{error} {AGAIN}") from error
        counts = record.get("batches")
        if (
            not isinstance(counts, list)
            or not all(type(c) is int and c >= 0 for c in counts)
            or len(counts) != span[1] - span[0]
        ):
            raise StoreError(f"Store: {path} is damaged. {AGAIN}")
        if record.get("plan") != self.manifest.plan:
            raise StoreError(
                f"Store: {path} is of another plan than the store that was opened. Open the store "
                f"again if it was written anew. {AGAIN}"
            )
        self._records[span] = record
        return record

    def span_of(self, unit: int) -> Span:
        """Return the range of units whose file contains a unit."""
        step = 1 << self.manifest.level
        start = unit // step * step
        return start, min(start + step, len(self.manifest.bounds) - 1)

    def batches(self, unit: int, wanted: frozenset[str] | None = None) -> Iterator[Batch]:
        """Yield the batches of a unit as they were written, at some of the sites."""
        span = self.span_of(unit)
        counts = self.record(span)["batches"]
        first = sum(counts[: unit - span[0]])
        tables = {
            name: columns
            for name, columns in self.manifest.tables.items()
            if wanted is None or any(c.schema.key in wanted for c in columns)
        }
        for i in range(first, first + counts[unit - span[0]]):
            try:
                files = {name: self.file(name, span) for name in (EXAMPLES, *tables)}
                if unit + 1 == span[1] or unit > span[0]:
                    self._read_ahead((EXAMPLES, *tables), span)
                yield self._batch(files, i, tables, wanted)
            except StoreError:
                raise
            except DAMAGE as error:
                raise StoreError(
                    f"Store: units {span} in {self.directory} are damaged: {error}. {REPAIR}"
                ) from error

    def examples(self) -> Iterator[pa.RecordBatch]:
        """Yield the table of examples batch by batch, with the chosen columns.

        Raises
        ------
        StoreError
            If a file is damaged.
        """
        for span in self.manifest.ranges():
            file = self.file(EXAMPLES, span)
            for i in range(file.n_batches):
                try:
                    yield file.batch(i, full=True)
                except pa.ArrowException as error:
                    raise StoreError(f"Store: {file.path} is damaged: {error}. {REPAIR}") from error

    def tables_of(self, unit: int, tables: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, ...]]:
        """Yield some tables of a unit batch by batch, as Arrow holds them.

        Raises
        ------
        StoreError
            If a file is damaged.
        """
        span = self.span_of(unit)
        counts = self.record(span)["batches"]
        first = sum(counts[: unit - span[0]])
        for i in range(first, first + counts[unit - span[0]]):
            yield tuple(self._table(self.file(name, span), i, name == EXAMPLES) for name in tables)

    def columns_of(
        self, unit: int, columns: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[pa.RecordBatch, ...]]:
        """Yield tables of a unit batch by batch, each with a single column that may be looked at.

        From object storage, only these columns are read.

        Raises
        ------
        StoreError
            If a file is damaged.
        """
        if not isinstance(self.directory, Place):
            yield from self.tables_of(unit, [table for table, _ in columns])
            return
        span = self.span_of(unit)
        counts = self.record(span)["batches"]
        first = sum(counts[: unit - span[0]])
        held: list[list[pa.RecordBatch]] = []
        for table, name in columns:
            path = row_file(self.directory, table, span)
            file = self._sparse.get(path, lambda t=table: self.opened(t, span, sparse=True))
            indices = range(first, first + counts[unit - span[0]])
            held.append([self._table(file, i, False) for i in indices])
            file.load_columns([part.column(name) for part in held[-1]])
        yield from zip(*held, strict=True)

    @staticmethod
    def _table(file: MappedFile, i: int, full: bool) -> pa.RecordBatch:
        try:
            return file.batch(i, full)
        except DAMAGE as error:
            raise StoreError(f"Store: {file.path} is damaged: {error}. {REPAIR}") from error

    def file(self, table: str, span: Span) -> MappedFile:
        """Return an open file; the last range's files stay open."""
        path = row_file(self.directory, table, span)

        def opened() -> MappedFile:
            ahead = self._ahead.pop((table, span), None)
            return self.opened(table, span, self._checked) if ahead is None else ahead.result()

        return self._open.get(path, opened)

    def _read_ahead(self, tables: Sequence[str], span: Span) -> None:
        """Start to read the files of the next range from object storage, if there is one."""
        if not isinstance(self.directory, Place) or span[1] == len(self.manifest.bounds) - 1:
            return
        after = self.span_of(span[1])
        for key in [key for key in self._ahead if key[1] != after]:
            self._ahead.pop(key).cancel()
        for table in tables:
            if (table, after) not in self._ahead:
                self._ahead[table, after] = AHEAD.submit(self.opened, table, after, self._checked)

    def opened(
        self, table: str, span: Span, checked: bool = False, sparse: bool = False
    ) -> MappedFile:
        """Open a file by its record as it is on disk now: the store may have been written anew.

        With ``sparse``, the rows of a file in object storage are read when they are loaded.

        Raises
        ------
        StoreError
            If the file is missing or damaged, or of another store than this one was.
        """
        self._read_record(span)
        path, size = row_file(self.directory, table, span), self._size(table, span)
        sums = self.record(span)["files"][table]
        file = MappedFile(path, size, sums.get("crc32") if checked else None, sparse)
        self._check_schema(file.schema, table, path)
        return file

    def _size(self, table: str, span: Span) -> int:
        try:
            return int(self.record(span)["files"][table]["size_bytes"])
        except (LookupError, TypeError, ValueError) as error:
            path = record_file(self.directory, span)
            raise StoreError(f"Store: {path} is damaged. {AGAIN}") from error

    def _check_schema(self, found: pa.Schema, table: str, path: Path) -> None:
        for column in self.manifest.tables.get(table, ()):
            field = column.field()
            if column.name not in found.names or found.field(column.name).type != field.type:
                raise StoreError(
                    f"Store: expected column {column.name} of type {field.type} in {path}."
                )

    @cached_property
    def head(self) -> Head | None:
        """The model's final linear layer, or None if it is unknown."""
        if HEAD not in self.manifest.files:
            return None
        try:
            tensors = safetensors.torch.load(side_file(self.directory, HEAD, self.manifest.files))
            return tensors["weight"], tensors.get("bias")
        except (safetensors.SafetensorError, LookupError) as error:
            raise StoreError(f"Store: {self.directory / HEAD} is damaged: {error}.") from error

    def _batch(
        self,
        files: dict[str, MappedFile],
        i: int,
        tables: dict[str, tuple[SiteColumn, ...]],
        wanted: frozenset[str] | None,
    ) -> Batch:
        file = files[EXAMPLES]
        part = file.batch(i, full=True)
        shared: dict[str, dict[str, Any]] = {
            name: {} for name in ("rows", "example", "position", "grad", "grid", "special", "sink")
        }
        for name, columns in tables.items():
            chosen = [c for c in columns if wanted is None or c.schema.key in wanted]
            self._read_table(files[name], i, chosen, len(part), shared)
        names = set(part.schema.names)

        def optional(name: str) -> torch.Tensor | None:
            return integer_column(part, name) if name in names else None

        return Batch(
            ids=LazyTexts(part.column("id")),
            keys=LazyTexts(part.column("key")),
            group_keys=LazyTexts(part.column("group_key")),
            order=integer_column(part, "order"),
            occurrence=integer_column(part, "occurrence"),
            label=integer_column(part, "label"),
            logits=number_column(file, part, "logits") if "logits" in names else None,
            head=self.head,
            seed=self.manifest.seed,
            extra={
                n.removeprefix(EXTRA): _extra(file, part, n) for n in names if n.startswith(EXTRA)
            },
            pair=optional("pair"),
            side=optional("side"),
            length=optional("length"),
            scattered=is_of_arrays(self.manifest.identity),
            **shared,
        )

    def _read_table(
        self,
        file: MappedFile,
        i: int,
        columns: Sequence[SiteColumn],
        n_examples: int,
        shared: dict[str, dict[str, Any]],
    ) -> None:
        part = file.batch(i)
        example, position = integer_column(part, "index"), integer_column(part, "position")
        if len(example) and not 0 <= int(example.min()) <= int(example.max()) < n_examples:
            raise StoreError(
                f"Store: a row of {self.directory} refers to an example that does not exist."
            )
        names = set(part.schema.names)
        marks = {
            name: torch.from_numpy(part.column(name).to_numpy(False))
            for name in ("special", "sink")
            if name in names
        }
        grid = [integer_column(part, n) for n in ("line", "column")] if "line" in names else None
        for column in columns:
            key, dtype = column.schema.key, column.schema.dtype
            shared["rows"][key] = file.tensor(part.column(column.name), dtype)
            shared["example"][key], shared["position"][key] = example, position
            if f"{column.name}_grad" in names:
                shared["grad"][key] = file.tensor(part.column(f"{column.name}_grad"), dtype)
            for name, mark in marks.items():
                shared[name][key] = mark
            if grid is not None:
                shared["grid"][key] = torch.stack(grid, dim=1)


def _extra(file: MappedFile, part: pa.RecordBatch, name: str) -> torch.Tensor:
    values = number_column(file, part, name)
    meta = part.schema.field(name).metadata or {}
    shape = [int(n) for n in meta.get(SHAPE, b"").split(b",") if n]
    return values.reshape(len(part), *shape) if values.ndim > 1 else values


class LazyTexts(Sequence[Any]):
    """A column of texts that are converted to Python objects on first use."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    @cached_property
    def _items(self) -> list[Any]:
        return self._column.to_pylist()

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)
