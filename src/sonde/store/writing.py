"""Write rows to disk: a file per table for each range of units, committed by one record.

The rows are written by a thread while the next ones are made; memory does not grow with the data.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, final

import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError, StoreError
from sonde.core.plan import UNIT_SIZE
from sonde.core.stream import Stream
from sonde.files.durable import TEMPORARY, atomic_write, make_directory, remove, remove_tree
from sonde.files.lock import RunLock
from sonde.files.places import to_path
from sonde.store._columns import (
    chosen_column,
    examples_of,
    hash_of,
    kind_of,
    plain_values,
    rows_of,
)
from sonde.store._files import HASHED_BYTES, MOST_HASHING, Hasher, RangeFiles, Span
from sonde.store._identity import describe_other_model, first_difference
from sonde.store._planned import files_beside, planned
from sonde.store.layout import DATA, EXAMPLES, GROUPS, HEAD, MANIFEST, RANGES, ROWS, SITES, sealed
from sonde.store.manifest import Manifest, is_whole, read_manifest
from sonde.store.outputs import check_folder


# The thread that writes the rows waits for the copies of a GPU's rows to pinned memory. Rows that
# are on the host already are left as they are.
@dataclass(frozen=True)
class Coming:
    """A batch whose rows are on the host, or arrive after all its events."""

    batch: Batch
    copied: tuple[torch.cuda.Event, ...] = ()

    def arrived(self) -> Batch:
        """Wait for the copies and return the batch."""
        for event in self.copied:
            event.synchronize()
        return self.batch


def to_host(batch: Batch) -> Coming:
    """Start copying GPU tensors to the host, safely with respect to later kernels.

    A copy is queued behind the kernels that made its source, on the stream that is current there,
    so memory that is freed meanwhile is not written again before the copy is done.
    """
    optional = () if batch.logits is None else (batch.logits,)
    devices = _cuda([*batch.rows.values(), *batch.grad.values(), *optional])
    if not devices:
        return Coming(batch)
    there = replace(
        batch,
        rows={key: _copied(x) for key, x in batch.rows.items()},
        grad={key: _copied(x) for key, x in batch.grad.items()},
        logits=None if batch.logits is None else _copied(batch.logits),
    )
    events = []
    for device in devices:
        with torch.cuda.device(device):
            events.append(torch.cuda.Event())
            events[-1].record()
    return Coming(there, tuple(events))


def _cuda(tensors: Iterable[Tensor]) -> list[torch.device]:
    return list(dict.fromkeys(x.device for x in tensors if x.is_cuda))


def _copied(x: Tensor) -> Tensor:
    if not x.is_cuda:
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    with torch.cuda.device(x.device):
        return host.copy_(x.detach(), non_blocking=True)


Item = TypeVar("Item")


WAITING_BYTES = 64 * 2**20

Tick = Callable[[int], None]
Fill = Callable[["StoreWriter", Tick], None]
"""Writes the ranges that a store lacks: this process, or others."""


def fill(writer: "StoreWriter", tick: Tick) -> None:
    """Write the missing ranges in this process."""
    writer.write(writer.manifest.ranges(), tick)


def write_store(
    stream: Stream,
    directory: str | Path,
    *,
    unit_size: int = UNIT_SIZE,
    columns: Mapping[str, Any] | None = None,
    fresh: bool = False,
    tick: Tick = lambda _: None,
    fill: Fill = fill,
) -> Path:
    """Write every row of a stream, and skip the ranges that an earlier call committed.

    Parameters
    ----------
    stream : Stream
        Stream whose rows are written.
    directory : path
        The store's folder; made if it is not there.
    unit_size : int, default=256
        Number of examples that are committed together.
    columns : mapping of str to sequence or array, optional
        Further columns, each with one value for every example in the planned order; where items of
        the data are left out or cut, ``[values[i] for i in stream.source_rows]``.
    fresh : bool, default=False
        Overwrite a store of another plan.
    tick : callable
        Called with the number of examples as they are read.
    fill : callable
        Function that writes the ranges; the bytes do not depend on who writes them.

    Raises
    ------
    InputError
        If the folder holds other files, or lies inside a store.
    StoreError
        If the folder holds another store, is being written by another process, or cannot be
        written.
    """
    directory = to_path(directory)
    check_folder(directory)
    with RunLock(directory):
        writer = StoreWriter(stream, directory, unit_size, columns)
        writer.start(fresh)
        fill(writer, tick)
    return directory


@final
class StoreWriter:
    """Writes the rows of a stream range by range, in any order and from several processes.

    Every range is committed by one rename and has the same bytes whoever writes it, so two
    processes that write the same range do no harm. One process calls ``start`` first.

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
        The kind of each column's values; inferred from the values if left out.
    """

    def __init__(
        self,
        stream: Stream,
        directory: Path,
        unit_size: int = UNIT_SIZE,
        columns: Mapping[str, Any] | None = None,
        keys: Sequence[str] | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        if len(stream) == 0:
            raise InputError("write_store: expected at least one example, got none.")
        self.stream, self.directory = stream, to_path(directory).absolute()
        chosen = {name: plain_values(values) for name, values in (columns or {}).items()}
        kinds = kinds or {name: kind_of(values) for name, values in chosen.items()}
        self._chosen = {n: chosen_column(n, v, len(stream), kinds[n]) for n, v in chosen.items()}
        first = stream.first_batch()
        self._beside = files_beside(stream, first)
        hashes = {name: hash_of(column.to_pylist()) for name, column in self._chosen.items()}
        self.manifest = planned(stream, first, unit_size, kinds, hashes, keys, self._beside)
        self._schemas = {name: part.schema for name, part in self._parts(first).items()}
        self._example_bytes = _size(first) / len(first)
        self._largest_bytes = max(_sizes(first), default=0) / len(first)

    def start(self, fresh: bool = False) -> None:
        """Write the manifest unless it exists; raise if it belongs to another plan.

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
        existed = path.exists()
        if existed:
            _drop(self.directory)
        for name, content in self._beside.items():
            atomic_write(self.directory / name, content)
        atomic_write(path, sealed(self.manifest.json()), once=not existed)

    @property
    def largest_unit(self) -> int:
        """Number of examples of the largest unit; arrays have units of their own size."""
        bounds = self.manifest.bounds
        return max(stop - start for start, stop in itertools.pairwise(bounds))

    def held_bytes(self, n_examples: int) -> int:
        """Return the maximal bytes of rows in transit, for batches of ``n_examples``.

        Some wait, one batch is made, one is written, and what was written is hashed, is queued for
        it, or is collected for the queue by the files of two ranges.
        """
        batch = int(self._example_bytes * n_examples)
        queued = MOST_HASHING * (HASHED_BYTES + int(self._largest_bytes * n_examples))
        return WAITING_BYTES + 2 * batch + queued + 2 * len(self._schemas) * HASHED_BYTES

    def missing(self) -> list[Span]:
        """Return the ranges of units that are not committed, or have lost a file."""
        return [span for span in self.manifest.ranges() if not self._is_written(span)]

    def _is_written(self, span: Span) -> bool:
        return is_whole(self.directory, self.manifest, span)

    def write(self, spans: Sequence[Span], tick: Tick = lambda _: None) -> None:
        """Write uncommitted ranges, and ranges with a lost file, in this order.

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
        with (
            Hasher() as hasher,
            ThreadPoolExecutor(1, "sonde-commit") as committer,
        ):
            sink = _Sink(self, hasher, committer)
            try:
                yield sink
                sink.finish()
            finally:
                sink.abandon()

    def open(self, span: Span, hasher: Hasher) -> RangeFiles:
        """Return the files of a range, ready for writing."""
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
    """A batch of a unit on its way to disk; without a batch, the end of its range."""

    span: Span
    unit: int = -1
    coming: Coming | None = None


class _Sink:
    """Work of the writing thread: it opens and fills files.

    A range is synced or uploaded by another thread while the next range is written.
    """

    def __init__(self, writer: StoreWriter, hasher: Hasher, committer: ThreadPoolExecutor) -> None:
        self._writer, self._hasher, self._committer = writer, hasher, committer
        self._files: RangeFiles | None = None
        self._committing: Future[None] | None = None

    def take(self, piece: _Piece) -> None:
        """Write one piece."""
        if self._files is None:
            self._files = self._writer.open(piece.span, self._hasher)
        if piece.coming is not None:
            self._files.add(piece.unit, self._writer.parts(piece.coming.arrived()))
            return
        files, self._files = self._files, None
        try:
            self.finish()
        except BaseException as error:
            files.abandon(error)
            raise
        self._committing = self._committer.submit(files.commit, self._writer.manifest.plan)

    def finish(self) -> None:
        """Wait until the last range is committed; raise what its commit raised."""
        committing, self._committing = self._committing, None
        if committing is not None:
            committing.result()

    def abandon(self) -> None:
        """Remove the files of an unfinished range."""
        if self._files is not None:
            self._files.abandon(StoreError("abandoned"))


def _size(batch: Batch) -> int:
    return sum(_sizes(batch))


def _sizes(batch: Batch) -> list[int]:
    return [x.nbytes for x in (*batch.rows.values(), *batch.grad.values())]


def require_same_plan(found: Manifest, mine: Manifest, directory: Path) -> None:
    """Raise if a store was begun with another plan.

    Raises
    ------
    StoreError
        If the plans differ; the message names the first difference.
    """
    if found.plan == mine.plan:
        return
    what = first_difference(found.identity, mine.identity)
    what = what or ("units" if found.bounds != mine.bounds else "columns")
    apart = describe_other_model(mine.identity, found.identity)
    what = f"its {what}" if apart is None else apart
    raise StoreError(
        f"write_store: {directory} holds rows of another model, data or reading ({what}). "
        "Write to another path, or pass --append to add data, --add-sites to add sites of the "
        "same data, or --fresh to replace it."
    )


def _remove_half_written(directory: Path) -> None:
    """Remove the temporary files of killed processes."""
    for place in (MANIFEST, GROUPS, HEAD, f"{ROWS}/*/*", f"{RANGES}/*"):
        for path in directory.glob(f"{place}{TEMPORARY}*"):
            remove(path)


def _drop(directory: Path) -> None:
    """Remove the rows of a store, starting with their records."""
    for record in (directory / RANGES).glob("*.json"):
        remove(record)
    for name in (ROWS, SITES, DATA):
        remove_tree(directory / name)


class Background(Generic[Item]):
    """Passes items to a thread in order, with a limit on the size of waiting items.

    Leaving the block waits until everything that was put has been worked on, also after an
    exception of the caller's. An exception of the work is raised at the next ``put``, or at the end
    of the block.

    Parameters
    ----------
    work : callable
        Takes one item.
    most : int
        Sum of the sizes of waiting items above which ``put`` waits; one item always fits.
    """

    def __init__(self, work: Callable[[Item], None], most: int) -> None:
        self._work, self._most = work, most
        self._waiting: deque[tuple[Item, int]] = deque()
        self._size, self._ended = 0, False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sonde-store", daemon=True)

    def __enter__(self) -> "Background[Item]":
        self._thread.start()
        return self

    def put(self, item: Item, size: int) -> None:
        """Give an item to the thread, and wait while the waiting items are too large."""
        with self._changed:
            while self._waiting and self._size + size > self._most and self._failure is None:
                self._changed.wait()
            self._raise()
            self._waiting.append((item, size))
            self._size += size
            self._changed.notify_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                item, size = self._waiting[0]
            try:
                self._work(item)
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._waiting.popleft()
                self._size -= size
                self._changed.notify_all()
            del item
