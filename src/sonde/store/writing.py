"""Rows to disk: one file per table for each range of units, committed by one record."""

import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import StoreError
from sonde.core.files import atomic_write, make_directory
from sonde.core.plan import UNIT_SIZE, Plan, unit_bounds
from sonde.core.state import canonical_json
from sonde.core.stream import Stream
from sonde.store.layout import (
    ARROW_TYPES,
    EXAMPLES,
    MANIFEST,
    RANGES,
    ROWS,
    Column,
    Manifest,
    read_json,
    read_manifest,
    to_column,
)

FILE_BYTES = 64 * 2**20


def write_store(
    stream: Stream,
    directory: str | Path,
    *,
    unit_size: int = UNIT_SIZE,
    fresh: bool = False,
    tick: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write every row of a stream; what an interrupted call has committed is not written again.

    Parameters
    ----------
    stream : Stream
    directory : path
        The store's folder; made if it is not there.
    unit_size : int, default=256
    fresh : bool, default=False
        Overwrite a store of another plan.
    tick : callable
        Called with the number of examples after each range.

    Raises
    ------
    StoreError
        If the folder holds another store, or cannot be written.
    """
    directory = Path(directory)
    manifest = _manifest(stream, unit_size)
    _start(directory, manifest, fresh)
    for start, stop in manifest.ranges():
        record = directory / RANGES / f"{start}-{stop}.json"
        if not _is_written(record, manifest):
            _write_range(stream, directory, manifest, start, stop, record)
        tick(manifest.bounds[stop] - manifest.bounds[start])
    return directory


def _is_written(record: Path, manifest: Manifest) -> bool:
    """Return whether a range was committed by this plan."""
    return record.exists() and read_json(record).get("plan") == manifest.plan


def _manifest(stream: Stream, unit_size: int) -> Manifest:
    bounds = tuple(unit_bounds(stream.group_keys, unit_size))
    unknown = sorted({s.dtype for s in stream.schema} - set(ARROW_TYPES))
    if unknown:
        raise StoreError(f"write_store: rows of type {', '.join(unknown)} cannot be stored.")
    first = stream.first_batch()
    tables = _tables(stream.schema, first)
    plan = Plan(stream.identity(), ("store",), bounds)
    return Manifest(
        plan=plan.id,
        bounds=bounds,
        level=_level(stream.schema, first, len(bounds) - 1, unit_size),
        identity=stream.identity(),
        tables=tables,
        group_keys=tuple(stream.group_keys),
        grouped=stream.grouped,
        seed=stream.seed,
    )


def _tables(schema: tuple[SiteSchema, ...], batch: Batch) -> dict[str, tuple[Column, ...]]:
    """Return the sites by row layout; sites share one where a batch says so."""
    layouts: dict[tuple[int, int], list[SiteSchema]] = {}
    for site in schema:
        layout = (id(batch.example[site.key]), id(batch.position[site.key]))
        layouts.setdefault(layout, []).append(site)
    tables: dict[str, tuple[Column, ...]] = {}
    number = 0
    for sites in layouts.values():
        name = "pooled" if sites[0].reducer.one_row else sites[0].reducer.name
        while name in tables:
            name += "_"
        columns = []
        for site in sites:
            columns.append(Column(f"s{number:03d}", site))
            number += 1
        tables[name] = tuple(columns)
    return tables


def _level(schema: tuple[SiteSchema, ...], batch: Batch, n_units: int, unit_size: int) -> int:
    """Return j so that the files of ``2**j`` units hold about 64 MB, from sizes alone."""
    per_example = sum(s.dim * len(batch.rows[s.key]) * 4 / len(batch) for s in schema)
    units = FILE_BYTES / max(1.0, per_example * unit_size)
    most = max(0, math.ceil(math.log2(max(1, n_units))))
    return min(most, max(0, round(math.log2(max(1.0, units)))))


def _start(directory: Path, manifest: Manifest, fresh: bool) -> None:
    make_directory(directory)
    path = directory / MANIFEST
    if path.exists() and not fresh:
        found = read_manifest(directory)
        if found.plan != manifest.plan:
            raise StoreError(
                f"write_store: {directory} holds rows of another model, data or reading. "
                "Write elsewhere, or pass --fresh to replace it."
            )
    if fresh and path.exists():
        for record in (directory / RANGES).glob("*.json"):
            record.unlink()
    atomic_write(path, (canonical_json(manifest.json()) + "\n").encode())


def _write_range(
    stream: Stream, directory: Path, manifest: Manifest, start: int, stop: int, record: Path
) -> None:
    batches = [
        batch
        for unit in range(start, stop)
        for batch in stream.batches(manifest.bounds[unit], manifest.bounds[unit + 1])
    ]
    written: dict[str, Any] = {}
    tables = {EXAMPLES: [_examples(b) for b in batches]}
    for name, columns in manifest.tables.items():
        tables[name] = [_rows(b, columns) for b in batches]
    for name, parts in tables.items():
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, parts[0].schema) as writer:
            for part in parts:
                writer.write_batch(part)
        content = sink.getbuffer()
        make_directory(directory / ROWS / name)
        atomic_write(directory / ROWS / name / f"{start}-{stop}.arrow", content.tobytes())
        written[name] = {
            "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest(),
            "size_bytes": content.nbytes,
            "rows": [part.num_rows for part in parts],
        }
    batches_per_unit = _count(stream, manifest, start, stop, batches)
    make_directory(record.parent)
    text = canonical_json({"plan": manifest.plan, "files": written, "batches": batches_per_unit})
    atomic_write(record, (text + "\n").encode())


def _count(
    stream: Stream, manifest: Manifest, start: int, stop: int, batches: list[Batch]
) -> list[int]:
    """Return how many of the batches belong to each unit, by the planned order of their rows."""
    counts = [0] * (stop - start)
    for batch in batches:
        first = int(batch.order[0])
        unit = next(u for u in range(start, stop) if first < manifest.bounds[u + 1])
        counts[unit - start] += 1
    return counts


def _examples(batch: Batch) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        "id": pa.array([str(i) for i in batch.ids], pa.string()),
        "key": pa.array([bytes(k) for k in batch.keys], pa.binary()),
        "group_key": pa.array([bytes(k) for k in batch.group_keys], pa.binary()),
        "order": pa.array(batch.order.tolist(), pa.int64()),
        "occurrence": pa.array([int(o) for o in batch.occurrence], pa.int32()),
        "label": pa.array(batch.label.tolist(), pa.int64()),
    }
    for name in ("pair", "side", "length"):
        values = getattr(batch, name)
        if values is not None:
            columns[name] = pa.array(values.tolist(), pa.int64())
    if batch.logits is not None:
        columns["logits"] = to_column(batch.logits)
    for name, values in batch.extra.items():
        if isinstance(values, torch.Tensor) and values.ndim == 1 and len(values) == len(batch):
            columns[f"extra_{name}"] = pa.array(values.detach().cpu().numpy())
        elif isinstance(values, torch.Tensor) and values.ndim == 2 and len(values) == len(batch):
            columns[f"extra_{name}"] = to_column(values)
    return pa.RecordBatch.from_pydict(columns)


def _rows(batch: Batch, columns: tuple[Column, ...]) -> pa.RecordBatch:
    key = columns[0].schema.key
    example = batch.example[key].tolist()
    words = batch.column("ids", key)
    found: dict[str, Any] = {
        "example": pa.array([bytes(w.numpy().tobytes()) for w in words], pa.binary(16)),
        "occurrence": pa.array([int(batch.occurrence[i]) for i in example], pa.int32()),
        "position": pa.array(batch.position[key].tolist(), pa.int32()),
        "index": pa.array(example, pa.int32()),
        "label": pa.array(batch.column("label", key).tolist(), pa.int64()),
    }
    if key in batch.special:
        found["special"] = pa.array(batch.special[key].tolist(), pa.bool_())
    if key in batch.grid:
        found["line"] = pa.array(batch.grid[key][:, 0].tolist(), pa.int32())
        found["column"] = pa.array(batch.grid[key][:, 1].tolist(), pa.int32())
    arrays = list(found.values())
    fields = [pa.field(name, array.type) for name, array in found.items()]
    for column in columns:
        arrays.append(to_column(batch.rows[column.schema.key]))
        fields.append(column.field())
        if column.schema.key in batch.grad:
            arrays.append(to_column(batch.grad[column.schema.key]))
            fields.append(pa.field(f"{column.name}_grad", arrays[-1].type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
