"""Rows to disk: one file per table for each range of units, committed by one record.

The rows are written by a thread while the next ones are made; memory does not grow with the data.
"""

import hashlib
import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import safetensors.torch

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, StoreError
from sonde.core.files import TEMPORARY, atomic_write, make_directory, remove
from sonde.core.lock import RunLock
from sonde.core.plan import UNIT_SIZE, Plan
from sonde.core.stream import Stream
from sonde.store._background import Background
from sonde.store._columns import chosen_column, examples_of, kind_of, rows_of
from sonde.store._copies import Coming, to_host
from sonde.store._files import RangeFiles, Span
from sonde.store._identity import difference, only_sites
from sonde.store.layout import (
    ARROW_TYPES,
    DATA,
    EXAMPLES,
    GROUPS,
    HEAD,
    MANIFEST,
    RANGES,
    ROWS,
    SITES,
    Column,
    Manifest,
    is_whole,
    pack_groups,
    read_manifest,
    sealed,
)

FILE_BYTES = 64 * 2**20
WAITING_BYTES = 64 * 2**20
KEEP = "keep"

Tick = Callable[[int], None]


def write_store(
    stream: Stream,
    directory: str | Path,
    *,
    unit_size: int = UNIT_SIZE,
    columns: Mapping[str, Sequence[Any]] | None = None,
    fresh: bool = False,
    tick: Tick = lambda _: None,
) -> Path:
    """Write every row of a stream; what an interrupted call has committed is not written again.

    Parameters
    ----------
    stream : Stream
    directory : path
        The store's folder; made if it is not there.
    unit_size : int, default=256
    columns : mapping of str to sequence, optional
        Further columns, each with one value for every example in the planned order.
    fresh : bool, default=False
        Overwrite a store of another plan.
    tick : callable
        Called with the number of examples as they are read.

    Raises
    ------
    StoreError
        If the folder holds another store, is being written by another process, or cannot be
        written.
    """
    directory = Path(directory)
    with RunLock(directory):
        writer = StoreWriter(stream, directory, unit_size, columns)
        writer.start(fresh)
        writer.write(writer.manifest.ranges(), tick)
    return directory


@final
class StoreWriter:
    """Writes the rows of a stream range by range, in any order and from any number of processes.

    Every range is committed by one rename and has the same bytes whoever writes it, so two that
    write the same one do no harm. One process calls ``start`` first.

    Parameters
    ----------
    stream : Stream
    directory : Path
    unit_size : int
    columns : mapping of str to sequence, optional
        As in ``write_store``.
    keys : sequence of str, optional
        Write only these kinds of rows.
    kinds : mapping of str to str, optional
        What the values of each column are; found from them where left out.
    """

    def __init__(
        self,
        stream: Stream,
        directory: Path,
        unit_size: int = UNIT_SIZE,
        columns: Mapping[str, Sequence[Any]] | None = None,
        keys: Sequence[str] | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        if len(stream) == 0:
            raise InputError("write_store: expected at least one example, got none.")
        self.stream, self.directory = stream, Path(directory)
        chosen = {} if columns is None else columns
        kinds = kinds or {name: kind_of(values) for name, values in chosen.items()}
        self._chosen = {n: chosen_column(n, v, len(stream), kinds[n]) for n, v in chosen.items()}
        first = stream.first_batch()
        self._beside = _beside(stream, first)
        self.manifest = _manifest(stream, first, unit_size, kinds, keys, self._beside)
        self._schemas = {name: part.schema for name, part in self._parts(first).items()}

    def start(self, fresh: bool = False) -> None:
        """Write the manifest, unless the folder holds it; what another plan left is refused.

        Raises
        ------
        StoreError
            If the folder holds another store, unless ``fresh``.
        """
        make_directory(self.directory)
        path = self.directory / MANIFEST
        if path.exists() and not fresh:
            require_same_plan(read_manifest(self.directory), self.manifest, self.directory)
            _remove_half_written(self.directory)
            return
        _remove_half_written(self.directory)
        if path.exists():
            _drop(self.directory)
        for name, content in self._beside.items():
            atomic_write(self.directory / name, content)
        atomic_write(path, sealed(self.manifest.json()))

    def missing(self) -> list[Span]:
        """Return the ranges of units that are not committed, or have lost a file."""
        return [span for span in self.manifest.ranges() if not self._is_written(span)]

    def _is_written(self, span: Span) -> bool:
        return is_whole(self.directory, self.manifest, span)

    def write(self, spans: Sequence[Span], tick: Tick = lambda _: None) -> None:
        """Write ranges that are not committed yet, or have lost a file, in this order.

        An exception, Ctrl-C too, leaves whole ranges committed and nothing else behind.
        """
        with (
            self._sink() as sink,
            Background(sink.take, WAITING_BYTES) as writing,
        ):
            for span in spans:
                if self._is_written(span):
                    tick(self.manifest.bounds[span[1]] - self.manifest.bounds[span[0]])
                    continue
                for unit in range(*span):
                    start, stop = self.manifest.bounds[unit : unit + 2]
                    for batch in self.stream.batches(start, stop):
                        writing.put(_Piece(span, unit, to_host(batch)), _size(batch))
                        tick(len(batch))
                writing.put(_Piece(span), 0)

    @contextmanager
    def _sink(self) -> Iterator["_Sink"]:
        with ThreadPoolExecutor(1, "sonde-hash") as hasher:
            sink = _Sink(self, hasher)
            try:
                yield sink
            finally:
                sink.abandon()

    def open(self, span: Span, hasher: ThreadPoolExecutor) -> RangeFiles:
        """Return the files of a range, to be filled."""
        return RangeFiles(self.directory, span, self._schemas, hasher)

    def _parts(self, batch: Batch) -> dict[str, pa.RecordBatch]:
        order = batch.order.numpy()
        chosen = {name: column.take(pa.array(order)) for name, column in self._chosen.items()}
        parts = {EXAMPLES: examples_of(batch, chosen)}
        for name, columns in self.manifest.tables.items():
            parts[name] = rows_of(batch, columns)
        return parts

    def parts(self, batch: Batch) -> dict[str, pa.RecordBatch]:
        """Return a batch as one record batch for each table."""
        return self._parts(batch)


@dataclass(frozen=True)
class _Piece:
    """A batch of a unit on its way to disk; without one, the end of its range."""

    span: Span
    unit: int = -1
    coming: Coming | None = None


class _Sink:
    """What the thread does with pieces: files are opened, filled, committed."""

    def __init__(self, writer: StoreWriter, hasher: ThreadPoolExecutor) -> None:
        self._writer, self._hasher = writer, hasher
        self._files: RangeFiles | None = None

    def take(self, piece: _Piece) -> None:
        """Write one piece."""
        if self._files is None:
            self._files = self._writer.open(piece.span, self._hasher)
        if piece.coming is not None:
            self._files.add(piece.unit, self._writer.parts(piece.coming.arrived()))
            return
        self._files.commit(self._writer.manifest.plan)
        self._files = None

    def abandon(self) -> None:
        """Remove the files of a range that did not end."""
        if self._files is not None:
            self._files.abandon(StoreError("abandoned"))


def _size(batch: Batch) -> int:
    return sum(x.nbytes for x in (*batch.rows.values(), *batch.grad.values()))


def require_same_plan(found: Manifest, mine: Manifest, directory: Path) -> None:
    """Refuse to go on with a store that another plan began.

    Raises
    ------
    StoreError
        Naming the first thing that differs.
    """
    if found.plan == mine.plan:
        return
    what = difference(found.identity, mine.identity)
    what = what or ("units" if found.bounds != mine.bounds else "columns")
    raise StoreError(
        f"write_store: {directory} holds rows of another model, data or reading (its {what}). "
        "Write elsewhere, pass --append to add data, --add-sites to add sites of the same data, "
        "or --fresh to replace it."
    )


def _remove_half_written(directory: Path) -> None:
    """Remove what a killed process left under temporary names."""
    for place in (MANIFEST, GROUPS, HEAD, f"{ROWS}/*/*", f"{RANGES}/*"):
        for path in directory.glob(f"{place}{TEMPORARY}*"):
            remove(path)


def _drop(directory: Path) -> None:
    """Remove the rows of a store: first what makes them count."""
    for record in (directory / RANGES).glob("*.json"):
        remove(record)
    for name in (ROWS, SITES, DATA):
        shutil.rmtree(directory / name, ignore_errors=True)


def _beside(stream: Stream, first: Batch) -> dict[str, bytes]:
    """Return the files beside the manifest."""
    found = {GROUPS: pack_groups(stream.group_keys, stream.source_rows)}
    if first.head is not None:
        weight, bias = first.head
        tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
        plain = {k: x.detach().cpu().contiguous().clone() for k, x in tensors.items()}
        found[HEAD] = safetensors.torch.save(plain)
    return found


def _manifest(
    stream: Stream,
    first: Batch,
    unit_size: int,
    columns: Mapping[str, str],
    keys: Sequence[str] | None,
    beside: Mapping[str, bytes],
) -> Manifest:
    schema = tuple(s for s in stream.schema if keys is None or s.key in keys)
    unknown = sorted({s.dtype for s in schema} - set(ARROW_TYPES))
    if unknown:
        raise StoreError(f"write_store: rows of type {', '.join(unknown)} cannot be stored.")
    bounds = tuple(stream.units(unit_size))
    identity = only_sites(stream.identity(), [s.key for s in schema])
    wanted = ("store", *(f"{name}: {kind}" for name, kind in sorted(columns.items())))
    return Manifest(
        plan=Plan(identity, wanted, bounds).id,
        bounds=bounds,
        level=_level(schema, first, len(bounds) - 1, unit_size),
        identity=identity,
        tables=_tables(schema, first),
        group_keys=tuple(stream.group_keys),
        source_rows=stream.source_rows,
        grouped=stream.grouped,
        seed=stream.seed,
        unit_size=unit_size,
        columns=dict(columns),
        every=int(identity.get(KEEP, 1)),
        files={n: hashlib.blake2b(c, digest_size=16).hexdigest() for n, c in beside.items()},
        label_names=stream.label_names,
    )


def _tables(schema: tuple[SiteSchema, ...], batch: Batch) -> dict[str, tuple[Column, ...]]:
    """Return the sites by row layout; sites share one where a batch says so."""
    layouts: dict[tuple[int, int], list[SiteSchema]] = {}
    for site in schema:
        layout = (id(batch.example[site.key]), id(batch.position[site.key]))
        layouts.setdefault(layout, []).append(site)
    tables: dict[str, tuple[Column, ...]] = {}
    numbers = itertools.count()
    for sites in layouts.values():
        name = "pooled" if sites[0].reducer.one_row else sites[0].reducer.name
        while name in tables:
            name += "_"
        tables[name] = tuple(Column(f"s{next(numbers):03d}", site) for site in sites)
    return tables


def _level(schema: tuple[SiteSchema, ...], batch: Batch, n_units: int, unit_size: int) -> int:
    """Return j so that the files of ``2**j`` units hold about 64 MB, from sizes alone."""
    per_example = sum(batch.rows[s.key].nbytes for s in schema) / len(batch)
    units = FILE_BYTES / max(1.0, per_example * unit_size)
    most = max(0, math.ceil(math.log2(max(1, n_units))))
    return min(most, max(0, round(math.log2(max(1.0, units)))))
