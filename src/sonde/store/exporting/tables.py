"""A store as one table: Parquet, or Lance with a vector index."""

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from sonde.core.errors import InputError, SondeError, StoreError
from sonde.core.files import TEMPORARY, atomic_file, replace, sync_directory
from sonde.store.exporting.facts import KEY, facts_of, written
from sonde.store.exporting.parts import (
    Part,
    column_names,
    id_columns,
    id_fields,
    parts_of,
    vector_column,
    vector_field,
)
from sonde.store.exporting.view import View
from sonde.store.reading import Store

Tick = Callable[[int], None]

GROUP_BYTES = 32 * 2**20
GROUP_ROWS = 65_536
PARTITION_ROWS = 256


@dataclass(frozen=True)
class Table:
    """What one exported table holds.

    Parameters
    ----------
    store : Store
        At the sites that are exported, all of one layout.
    kinds : dict of str to str
        Columns that the user chose, with their kinds.
    view : View or None
    vectors : bool
        Whether the rows themselves are columns.
    """

    store: Store
    kinds: dict[str, str]
    view: View | None
    vectors: bool

    @cached_property
    def grid(self) -> bool:
        """Whether rows have a line and a column."""
        return self.store.schema[0].key in self.store.first_batch().grid

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns, and in the metadata what they are."""
        fields = id_fields(self.store, self.kinds, self.grid)
        fields += [] if self.view is None else self.view.fields()
        facts = facts_of(self.store, self.store.n_rows())
        if self.view is not None:
            facts["view"] = {"site": self.view.key, "sample": len(self.view.rows)}
        if self.vectors:
            facts["columns"] = self.vector_names([f.name for f in fields])
            for schema in self.store.schema:
                fields.append(vector_field(facts["columns"][schema.key], schema))
        return pa.schema(fields, metadata={KEY: written(facts)})

    def vector_names(self, taken: list[str]) -> dict[str, str]:
        """Return the column of each site."""
        return column_names([s.key for s in self.store.schema], taken)

    def batches(self, tick: Tick) -> Iterator[pa.RecordBatch]:
        """Yield the table in record batches of at most about 32 MiB."""
        waiting: list[pa.RecordBatch] = []
        n_bytes = n_rows = 0
        for part in parts_of(self.store, self.kinds):
            waiting.append(self._batch(part))
            tick(len(part.batch))
            n_bytes, n_rows = n_bytes + waiting[-1].nbytes, n_rows + len(part)
            if n_bytes > GROUP_BYTES or n_rows > GROUP_ROWS:
                yield _joined(waiting)
                waiting, n_bytes, n_rows = [], 0, 0
        if waiting:
            yield _joined(waiting)

    def _batch(self, part: Part) -> pa.RecordBatch:
        columns = id_columns(self.store, part, self.grid)
        columns += [] if self.view is None else self.view.columns(part)
        if self.vectors:
            columns += [vector_column(part.batch.rows[s.key]) for s in self.store.schema]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def write_parquet(table: Table, path: Path, tick: Tick) -> int:
    """Write a table as Parquet and return its number of rows."""
    n_rows = 0
    with atomic_file(path) as file:
        sink = pa.PythonFile(file, mode="w")
        options = {"compression": "zstd", "write_page_checksum": True}
        with parquet.ParquetWriter(sink, table.schema, **options) as writer:
            for batch in table.batches(tick):
                writer.write_batch(batch)
                n_rows += len(batch)
    return n_rows


def write_lance(table: Table, path: Path, tick: Tick) -> int:
    """Write a table as a Lance data set with an index on each site; one commit, then a count.

    It grows under another name beside its place and takes its name when it is whole.

    Raises
    ------
    InputError
        If Lance is not installed.
    StoreError
        If there is something at that place, or what is there afterwards is not what was written.
    """
    lance = lance_module()
    if path.exists():
        raise StoreError(f"export: {path} exists. Remove it, or write elsewhere.")
    aside = path.with_name(f"{path.name}{TEMPORARY}{secrets.token_hex(6)}")
    failed: list[SondeError] = []
    n_rows = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal n_rows
        try:
            for batch in table.batches(tick):
                n_rows += len(batch)
                yield batch
        except SondeError as error:
            failed.append(error)
            raise

    try:
        reader = pa.RecordBatchReader.from_batches(table.schema, counted())
        found = lance.write_dataset(reader, str(aside), mode="create")
        for name in table.schema.names[-len(table.store.schema) :] if n_rows else ():
            _index(found, name, n_rows)
        if found.count_rows() != n_rows:
            raise StoreError(f"export: Lance holds {found.count_rows()} of {n_rows} rows.")
        _to_disk(aside)
        replace(aside, path)
        sync_directory(path.parent)
    except OSError as error:
        if failed:
            raise failed[0] from error
        if isinstance(error, SondeError):
            raise
        raise StoreError(f"export: Lance could not write {path}: {error}.") from error
    except Exception as error:
        if failed:
            raise failed[0] from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return n_rows


def lance_module() -> Any:
    """Return the package, or the error that says how to install it.

    Raises
    ------
    InputError
        If it is not installed.
    """
    os.environ.setdefault("LANCE_LOG", "error")  # it tells how long each index took
    try:
        import lance
    except ImportError as error:
        raise InputError(
            "export: Lance files need the package pylance. Run: pip install 'pylance>=14'."
        ) from error
    return lance


def _index(found: Any, name: str, n_rows: int) -> None:
    """Make the index of a column: its exact vectors, in partitions of nearby rows."""
    partitions = max(1, min(n_rows // PARTITION_ROWS, round(math.sqrt(n_rows))))
    found.create_index(name, "IVF_FLAT", metric="l2", num_partitions=partitions)


def _to_disk(folder: Path) -> None:
    """Sync every file and folder: Lance leaves that to the system."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_dir():
            sync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
