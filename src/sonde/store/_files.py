"""Files of a range of units during writing: all data files, then their record."""

import hashlib
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from sonde.core.errors import StoreError
from sonde.files.durable import AtomicFile, WriteOnly, atomic_file, atomic_write, make_directory
from sonde.store.layout import record_file, row_file, sealed

Span = tuple[int, int]
HASHED_BYTES = 4 * 2**20
MOST_HASHING = 8


class Hasher:
    """A thread that hashes pieces of files in order, and lets few of them wait.

    One serves all files of a writer: the rows that wait to be hashed are held, and a range that is
    committed late would otherwise hold as many as the range that is written meanwhile.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "sonde-hash")
        self._free = threading.Semaphore(MOST_HASHING)

    def __enter__(self) -> "Hasher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def submit(self, work: Callable[[list[Any]], None], pieces: list[Any]) -> Future[None]:
        """Queue pieces of a file; wait while ``MOST_HASHING`` lists of pieces are queued."""
        self._free.acquire()
        return self._thread.submit(self._run, work, pieces)

    def _run(self, work: Callable[[list[Any]], None], pieces: list[Any]) -> None:
        try:
            work(pieces)
        finally:
            # The queue's own reference to the list lasts until the call ends.
            pieces.clear()
            self._free.release()


class HashedFile(WriteOnly):
    """A file whose hash is computed by a thread while it is written."""

    def __init__(self, file: AtomicFile, hasher: Hasher) -> None:
        self._file, self._hasher = file, hasher
        self._hash, self._sum = hashlib.blake2b(digest_size=16), 0
        self._pieces: list[Any] = []
        self._n_bytes = 0
        self._busy: list[Future[None]] = []

    def write(self, content: Any) -> int:
        """Append bytes, or any object with a buffer of bytes."""
        self._pieces.append(content)
        written = self._file.write(content)
        self._n_bytes += written
        if self._n_bytes >= HASHED_BYTES:
            self._send()
        return written

    def _send(self) -> None:
        pieces, self._pieces, self._n_bytes = self._pieces, [], 0
        self._raise_failure()
        self._busy.append(self._hasher.submit(self._update, pieces))

    def _raise_failure(self) -> None:
        while self._busy and self._busy[0].done():
            self._busy.pop(0).result()

    def _update(self, pieces: list[Any]) -> None:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            self._hash.update(view)
            self._sum = zlib.crc32(view, self._sum)

    def sums(self) -> dict[str, str | int]:
        """Return the hash of all written bytes, and a fast checksum."""
        self._send()
        for busy in self._busy:
            busy.result()
        return {"blake2b": self._hash.hexdigest(), "crc32": self._sum}

    def tell(self) -> int:
        """Return the number of written bytes."""
        return self._file.tell()


class RangeFiles:
    """A range of units during writing: one file per table, with temporary names at first.

    Parameters
    ----------
    directory : Path
    span : (int, int)
    schemas : mapping of str to pa.Schema
        The columns of each table.
    hasher : Hasher
        Thread that hashes what is written.
    """

    def __init__(
        self,
        directory: Path,
        span: Span,
        schemas: Mapping[str, pa.Schema],
        hasher: Hasher,
    ) -> None:
        self._directory, self._span = directory, span
        self._stack = ExitStack()
        self._files: dict[str, HashedFile] = {}
        self._writers: dict[str, Any] = {}
        self._rows: dict[str, list[int]] = {name: [] for name in schemas}
        self._counts = [0] * (span[1] - span[0])
        try:
            for name, schema in schemas.items():
                path = row_file(directory, name, span)
                make_directory(path.parent)
                file = HashedFile(self._stack.enter_context(atomic_file(path)), hasher)
                self._files[name] = file
                self._writers[name] = pa.ipc.new_file(file, schema)
        except BaseException as error:
            self.abandon(error)
            raise

    def add(self, unit: int, parts: Mapping[str, pa.RecordBatch]) -> None:
        """Append one batch of a unit to every table.

        Raises
        ------
        StoreError
            If the batch has other columns than the batches before, or the disk is full.
        """
        try:
            for name, part in parts.items():
                self._writers[name].write_batch(part)
                self._rows[name].append(part.num_rows)
        except pa.ArrowException as error:
            raise StoreError(
                f"write_store: the batches of {self._directory} differ in their columns: {error}."
            ) from error
        self._counts[unit - self._span[0]] += 1

    def commit(self, plan: str) -> None:
        """Give all files their names, and write the record that commits them."""
        try:
            self._commit(plan)
        except BaseException as error:
            self.abandon(error)
            raise

    def _commit(self, plan: str) -> None:
        written: dict[str, Any] = {}
        for name, file in self._files.items():
            self._writers[name].close()
            written[name] = {
                **file.sums(),
                "size_bytes": file.tell(),
                "rows": self._rows[name],
            }
        self._stack.close()
        record = record_file(self._directory, self._span)
        make_directory(record.parent)
        content = sealed({"plan": plan, "files": written, "batches": self._counts})
        atomic_write(record, content, once=True)

    def abandon(self, error: BaseException) -> None:
        """Remove the files written so far."""
        with suppress(BaseException):
            self._stack.__exit__(type(error), error, error.__traceback__)
