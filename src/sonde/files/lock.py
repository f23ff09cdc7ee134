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
        self._path, self._steal = Path(directory).absolute() / NAME, steal
        self._lock = SoftFileLock(self._path, timeout=0)

    def __enter__(self) -> "RunLock":
        if self._steal or _is_left_half_made(self._path):
            self._lock.break_lock()
        make_directory(self._path.parent)
        try:
            self._lock.acquire()  # makes the directory again if another one ended and removed it
        except Timeout:
            holder = _read(self._path)
            who = "somebody" if holder is None else f"process {holder.pid} on {holder.host}"
            raise StoreError(
                f"RunLock: {self._path.parent} is in use by {who}. Wait for it, or if you are sure "
                f"that it has ended, remove {self._path}."
            ) from None
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
        self._lock.release()
        with suppress(OSError):
            self._path.parent.rmdir()


def holder_of(directory: Path | str) -> Holder | None:
    """Return the process that holds a directory, unless it is known to have ended."""
    holder = _read(Path(directory).absolute() / NAME)
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
