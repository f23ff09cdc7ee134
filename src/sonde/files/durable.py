"""The functions by which sonde changes files, and the atomic write that uses them.

A file appears whole or not at all: its bytes go to a temporary name in the same directory, are
synced, and take the final name by one rename. Everything that must survive a kill writes through
this module, so a test can stop the program before any single call: each of ``PRIMITIVES`` may be
replaced, and ``SONDE_FAULT=n`` ends the process at the n-th call.
"""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sonde.core.errors import StoreError
from sonde.files.places import ADDRESS, Place, require_slashes, to_path

PRIMITIVES = ("open_new", "write", "fsync", "replace", "unlink")
TEMPORARY = ".tmp-"

Bytes = bytes | bytearray | memoryview

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_calls = 0


def _step() -> None:
    global _calls
    fault = os.environ.get("SONDE_FAULT")
    if fault is None:
        return
    _calls += 1
    if _calls == int(fault):
        os._exit(137)


def open_new(path: Path) -> int:
    """Create a file that must not exist yet, and return its descriptor."""
    _step()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def write(descriptor: int, content: Bytes) -> None:
    """Write all of ``content``."""
    _step()
    view = memoryview(content).cast("B")
    while view:
        view = view[os.write(descriptor, view[: 1 << 28]) :]


def fsync(descriptor: int) -> None:
    """Ask the system to write an open file to the disk."""
    _step()
    os.fsync(descriptor)


def replace(source: Path, target: Path, once: bool = False) -> None:
    """Rename ``source`` to ``target``, replacing an existing file; upload it to a place.

    With ``once``, an object that another writer committed under that name is not replaced.
    """
    _step()
    if isinstance(target, Place):
        target.upload(source, once)
        source.unlink()
    else:
        source.replace(target)


def behind_link(path: Path) -> Path:
    """Return the file to write for a path: the path, or the target of a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, as far as that is possible."""
    if isinstance(path, Place):
        path.remove_below()
    else:
        shutil.rmtree(path, ignore_errors=True)


def unlink(path: Path) -> None:
    """Remove a file; a missing file is not an error."""
    _step()
    path.unlink(missing_ok=True)


class WriteOnly:
    """Methods that Arrow requires of a file object, besides ``write`` and ``tell``."""

    closed = False

    def flush(self) -> None:
        """Do nothing, because writes are not buffered here."""

    def close(self) -> None:
        """Do nothing, because the file closes when its ``with`` block ends."""

    def readable(self) -> bool:
        """Return False."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return False."""
        return False


class AtomicFile(WriteOnly):
    """A file that is written under a temporary name."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path, self._size = descriptor, path, 0

    def write(self, content: Any) -> int:
        """Append bytes, or any object with a buffer, and return the number of bytes.

        Raises
        ------
        StoreError
            If the disk is full.
        """
        n_bytes = memoryview(content).nbytes
        if n_bytes:
            try:
                write(self._descriptor, memoryview(content))
            except OSError as error:
                raise write_error(self._path, error) from error
        self._size += n_bytes
        return n_bytes

    def amend(self, at: int, content: bytes) -> None:
        """Overwrite written bytes with an equal number of new bytes.

        Raises
        ------
        StoreError
            If they cannot be written.
        """
        assert 0 <= at <= self._size - len(content), "only what was written is amended"
        try:
            os.lseek(self._descriptor, at, os.SEEK_SET)
            write(self._descriptor, content)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise write_error(self._path, error) from error

    def tell(self) -> int:
        """Return the number of written bytes."""
        return self._size


def require_local(path: Path | str) -> None:
    """Raise if a path is an address such as ``s3://bucket/name``, where a file is needed.

    ``pathlib`` reads such an address as a folder called ``s3:``; without this check, files would
    be written to that folder and the command would print success.

    Raises
    ------
    StoreError
        If the path begins with a scheme of two or more letters and a colon.
    """
    require_slashes(path)
    match = ADDRESS.match(str(path))
    if match is not None and match["scheme"].lower() == "file":
        raise StoreError(
            f"file:///{match['rest']}: expected a path, got an address of this machine. Name it "
            f"/{match['rest']}."
        )
    if match is not None:
        raise StoreError(
            f"{match['scheme']}://{match['rest']}: expected a path on this machine, got an "
            "address. Name a local file or folder, and copy it from or to the address."
        )


@contextmanager
def atomic_file(
    path: Path | str, durable: bool = True, once: bool = False
) -> Generator[AtomicFile, None, None]:
    """Open a file that gets its name when the block ends without an exception.

    Parameters
    ----------
    path : path
        The final name. An existing file is replaced; a link stays, and its target is replaced.
    durable : bool, default=True
        Sync file and directory, so that a power cut cannot undo it. A killed process needs no sync.
    once : bool, default=False
        In object storage, write by a conditional put: raise if another writer committed other
        bytes under this name. Local files are replaced.

    Raises
    ------
    StoreError
        If the disk is full, the place is not writable, or the directory does not exist.
    """
    path = _writable(path)
    try:
        target = behind_link(path)
        name = f"{target.name[:200]}{TEMPORARY}{secrets.token_hex(6)}"
        is_here = not isinstance(target, Place)
        temporary = target.with_name(name) if is_here else Path(tempfile.gettempdir()) / name
        descriptor = open_new(temporary)
        try:
            try:
                yield AtomicFile(descriptor, path)
                if durable and is_here:
                    fsync(descriptor)
            finally:
                os.close(descriptor)
            replace(temporary, target, once)
        except BaseException:
            with suppress(OSError):
                unlink(temporary)
            raise
        if durable and is_here:
            sync_directory(target.parent)
    except StoreError:
        raise
    except OSError as error:
        raise write_error(path, error) from error


def _writable(path: Path | str) -> Path:
    """Return a path, or a place that can be written."""
    path = to_path(path)
    if isinstance(path, Place):
        path.require_writable()
    else:
        require_local(path)
    return path


def atomic_write(
    path: Path | str, content: Bytes | Iterable[Bytes], durable: bool = True, once: bool = False
) -> None:
    """Write a whole file atomically: it appears complete or not at all.

    Parameters
    ----------
    path : path
    content : bytes, or an iterable of bytes
    durable, once : bool
        See ``atomic_file``.

    Raises
    ------
    StoreError
        If it cannot be written; nothing is left behind.
    """
    with atomic_file(path, durable, once) as file:
        pieces = [content] if isinstance(content, bytes | bytearray | memoryview) else content
        for piece in pieces:
            file.write(piece)


def sync_directory(path: Path) -> None:
    """Sync a directory to the disk, if the system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file if it exists.

    Raises
    ------
    StoreError
        If it cannot be removed.
    """
    try:
        unlink(path)
    except OSError as error:
        raise StoreError(_explained("remove", path, error)) from error


def make_directory(path: Path | str) -> None:
    """Make a directory and its parents if they do not exist.

    Raises
    ------
    StoreError
        If it cannot be made.
    """
    path = _writable(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(_explained("make the directory", path, error)) from error


def write_error(path: Path, error: OSError) -> StoreError:
    """Return the error for a file that could not be written, with advice."""
    return StoreError(_explained("write", path, error))


def _explained(action: str, path: Path, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        advice = "Free some space or choose another folder; earlier commits are kept."
    elif error.errno in _DENIED:
        advice = "Choose a folder in which you have permission to write."
    elif error.errno == errno.ENOENT:
        advice = "Check that the directory exists and that no other program removed the file."
    else:
        advice = "Check the path and the disk."
    return f"could not {action} {path}: {reason}. {advice}"
