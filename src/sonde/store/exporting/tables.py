"""A store as one table, and the table as Parquet."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from sonde.files.seal import BLANK, sealed_file
from sonde.store.exporting.facts import KEY, SEAL, facts_of, written
from sonde.store.exporting.parts import (
    ExportPart,
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


@dataclass(frozen=True)
class Table:
    """Contents of one exported table.

    Parameters
    ----------
    store : Store
        At the sites that are exported, all of one layout.
    kinds : dict of str to str
        Columns that the user chose, with their kinds.
    view : View or None
    vectors : bool
        Whether the rows themselves are columns.
    finite_only : bool, default=False
        Whether rows that are not finite are null there.
    """

    store: Store
    kinds: dict[str, str]
    view: View | None
    vectors: bool
    finite_only: bool = False

    @cached_property
    def grid(self) -> bool:
        """True if rows have a row and a column on a grid."""
        return self.store.schema[0].key in self.store.first_batch().grid

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns, with their meaning in the metadata."""
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
                yield from _joined(waiting)
                waiting, n_bytes, n_rows = [], 0, 0
        yield from _joined(waiting)

    def _batch(self, part: ExportPart) -> pa.RecordBatch:
        columns = id_columns(self.store, part, self.grid)
        columns += [] if self.view is None else self.view.columns(part)
        if self.vectors:
            rows = [part.batch.rows[s.key] for s in self.store.schema]
            columns += [vector_column(x, self.finite_only) for x in rows]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _joined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return one batch of all rows, or none if there is no row."""
    return pa.Table.from_batches(batches).combine_chunks().to_batches() if batches else []


def write_parquet(table: Table, path: Path, tick: Tick) -> int:
    """Write a table as Parquet and return its number of rows."""
    n_rows = 0
    with sealed_file(path) as file:
        sink = pa.PythonFile(file, mode="w")
        options = {"compression": "zstd", "write_page_checksum": True}
        with parquet.ParquetWriter(sink, table.schema, **options) as writer:
            for batch in table.batches(tick):
                writer.write_batch(batch)
                n_rows += len(batch)
            writer.add_key_value_metadata({SEAL: BLANK})
    return n_rows
