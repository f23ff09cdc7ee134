"""Lock that allows one runner for each run directory.

The lock saves work; correctness does not depend on it, since every commit is idempotent. The file
names a process by host, pid and start time, so a lock that outlived its process is recognised.
"""

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import SoftFileLock, Timeout

from sonde.core.errors import StoreError
from sonde.files.durable import make_directory
from sonde.files.places import Place, to_path

NAME = "lock"
UNREADABLE_SECONDS = 10.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int

    def is_gone(self) -> bool:
        """Return whether a process is known to have ended; False for other hosts."""
        if self.host != socket.gethostname() or os.name == "nt":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        return False


class RunLock:
    """Locks a run directory for one ``with`` block.

    Parameters
    ----------
    directory : path
        Made if it is not there, and removed at the end if nothing is in it.
    steal : bool, default=False
        Take the lock whoever holds it.

    Raises
    ------
    StoreError
        If another live process, or one on another host, holds it.
    """

    def __init__(self, directory: Path | str, steal: bool = False) -> None:
        self._path, self._steal = to_path(directory).absolute() / NAME, steal
        self._lock = SoftFileLock(self._path, timeout=0)

    def __enter__(self) -> "RunLock":
        if isinstance(self._path, Place):
            _lock_place(self._path, self._steal)
            return self
        if self._steal or _is_left_half_made(self._path):
            self._lock.break_lock()
        make_directory(self._path.parent)
        try:
            self._lock.acquire()  # makes the directory again if another one ended and removed it
        except Timeout:
            raise _in_use(self._path) from None
        except OSError as error:
            raise StoreError(
                f"RunLock: could not write {self._path}: {error.strerror}. Choose another folder."
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(self._path, Place):
            self._path.unlink()
            return
        self._lock.release()
        with suppress(OSError):
            self._path.parent.rmdir()


def _lock_place(path: Place, steal: bool) -> None:
    """Write the lock by a conditional put, and see that a second one is refused."""
    path.require_writable()
    content = f"{os.getpid()}\n{socket.gethostname()}\n".encode()
    holder = _read(path)
    if holder is not None and (steal or holder.is_gone()):
        path.unlink()
    if not path.create(content):
        raise _in_use(path)
    if path.create(content):
        path.unlink()
        raise StoreError(
            f"{path.parent}: the service overwrites an object that a conditional write "
            "(If-None-Match) must leave alone, so two runs could damage each other. Write to a "
            "service that supports conditional writes, or to a local path, and copy it."
        )


def _in_use(path: Path) -> StoreError:
    holder = _read(path)
    who = "somebody" if holder is None else f"process {holder.pid} on {holder.host}"
    return StoreError(
        f"RunLock: {path.parent} is in use by {who}. Wait for it, or if you are sure that it has "
        f"ended, remove {path}."
    )


def holder_of(directory: Path | str) -> Holder | None:
    """Return the process that holds a directory, unless it is known to have ended."""
    holder = _read(to_path(directory).absolute() / NAME)
    return None if holder is None or holder.is_gone() else holder


def _read(path: Path) -> Holder | None:
    try:
        pid, host = path.read_text()[:1024].splitlines()[:2]
        return Holder(host.partition("?")[0], int(pid))  # what follows names the pid's namespace
    except (OSError, ValueError):
        return None


def _is_left_half_made(path: Path) -> bool:
    """Return whether a process was killed before it wrote its name into its lock."""
    with suppress(OSError):
        return _read(path) is None and time.time() - path.stat().st_mtime > UNREADABLE_SECONDS
    return False
