"""A store as a Lance data set, whose files are written by another library.

Lance keeps no checksums and syncs nothing to disk, so a list of the files with their hashes lies
beside them, and every file is synced before the folder takes its name.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from sonde.core.errors import InputError, SondeError, StoreError, failed_import
from sonde.core.wording import install_extra
from sonde.files.durable import TEMPORARY, replace, sync_directory, write_error
from sonde.files.seal import BLANK, sealed_file
from sonde.store.exporting.facts import SEAL
from sonde.store.exporting.tables import Table

Tick = Callable[[int], None]

FILES = "sonde.json"
PARTITION_ROWS = 256
_OS_ERROR = re.compile(r"os error (\d+)")


def write_lance(table: Table, path: Path, tick: Tick) -> int:
    """Write a table as a Lance data set with an index on each site, in one commit.

    The data set grows under another name beside its place and takes its name when it is whole.

    Raises
    ------
    InputError
        If Lance is not installed.
    StoreError
        If the path exists already, the disk is full, or Lance holds another number of rows than was
        written.
    """
    lance = lance_module()
    if path.exists():
        raise StoreError(f"export: {path} exists. Remove it, or write to another path.")
    aside = path.with_name(f"{path.name}{TEMPORARY}{secrets.token_hex(6)}")
    rows = _CountedRows(table, tick)
    try:
        reader = pa.RecordBatchReader.from_batches(table.schema, rows.batches())
        dataset = lance.write_dataset(reader, str(aside), mode="create")
        for name, n_finite in rows.n_finite.items():
            if n_finite:
                _index(dataset, name, n_finite)
        if dataset.count_rows() != rows.n:
            raise StoreError(
                f"export: the written Lance file contains {dataset.count_rows()} of {rows.n} "
                "rows. Export it again."
            )
        _list_files(aside)
        _to_disk(aside)
        replace(aside, path)
        sync_directory(path.parent)
    except Exception as error:
        reason = rows.failed or _told(error, path)
        if reason is error:
            raise
        raise reason from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return rows.n


class _CountedRows:
    """Counted rows for Lance, which keep sonde's errors so that Lance does not wrap them."""

    def __init__(self, table: Table, tick: Tick) -> None:
        self._table, self._tick = table, tick
        self.n, self.failed = 0, None
        self.n_finite = dict.fromkeys(table.schema.names[-len(table.store.schema) :], 0)

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._table.batches(self._tick):
                self.n += len(batch)
                for name in self.n_finite:
                    self.n_finite[name] += len(batch) - batch.column(name).null_count
                yield batch
        except SondeError as error:
            self.failed: SondeError | None = error
            raise


def _told(error: Exception, path: Path) -> Exception:
    """Return an error of Lance as a write error if the system caused it, else unchanged."""
    if isinstance(error, SondeError):
        return error
    match = _OS_ERROR.search(str(error))
    if match is not None:
        number = int(match[1])
        return write_error(path, OSError(number, os.strerror(number)))
    if isinstance(error, OSError):
        return write_error(path, OSError(error.errno or errno.EIO, error.strerror or str(error)))
    return error


def lance_module() -> Any:
    """Return the Lance package, or raise an error with the command that installs it.

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
            f"export: Lance files need {failed_import('pylance', error)}. Run: "
            f"{install_extra('lance')}"
        ) from error
    return lance


def _index(found: Any, name: str, n_rows: int) -> None:
    """Create the index of a column: exact vectors, in partitions of nearby rows."""
    partitions = max(1, min(n_rows // PARTITION_ROWS, round(math.sqrt(n_rows))))
    found.create_index(name, "IVF_FLAT", metric="l2", num_partitions=partitions)


def _list_files(folder: Path) -> None:
    """Write the hashes of all files of a data set into a list beside them."""
    files = {p.relative_to(folder).as_posix(): file_hash(p) for p in files_in(folder)}
    with sealed_file(folder / FILES) as file:
        file.write(json.dumps({"files": files, SEAL: BLANK}, indent=1).encode())


def files_in(folder: Path) -> list[Path]:
    """Return every file of a data set except the list of files."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / FILES)


def file_hash(path: Path) -> str:
    """Return the hash of a file in the form of the list."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _to_disk(folder: Path) -> None:
    """Sync every file and folder to disk, since Lance does not."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_dir():
            sync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
