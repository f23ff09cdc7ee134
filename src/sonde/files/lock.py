"""One runner for each run directory.

The lock saves work; correctness does not depend on it, since every commit is idempotent. It names a
process by host, boot, pid and start time, so a lock that outlived its process is recognised.
"""

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sonde.core.errors import StoreError
from sonde.files.durable import TEMPORARY, make_directory, open_new, remove, unlink, write

NAME = "lock"
UNREADABLE_SECONDS = 10.0

_held: set[Path] = set()


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> "Holder":
        """Return the calling process."""
        return cls(socket.gethostname(), _boot_id(), os.getpid(), _start_time(os.getpid()))

    def is_gone(self) -> bool:
        """Return whether that process is known to have ended; False for other hosts."""
        if self.host != socket.gethostname():
            return False
        if self.boot != _boot_id():
            return True
        if not _is_alive(self.pid):
            return True
        return bool(self.started) and self.started != _start_time(self.pid)


class RunLock:
    """Holds a run directory for one ``with`` block.

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
        self._mine = Holder.here()

    def __enter__(self) -> "RunLock":
        for _ in range(20):
            make_directory(self._path.parent)
            if self._create():
                _held.add(self._path)
                return self
            self._clear()
        raise StoreError(f"RunLock: {self._path} keeps changing hands. Try again.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _held.discard(self._path)
        if _read(self._path) == self._mine:
            remove(self._path)
        with suppress(OSError):
            self._path.parent.rmdir()

    def _create(self) -> bool:
        """Make the lock with its content in one step; False if there is one, or no directory."""
        temporary = self._path.with_name(f"{NAME}{TEMPORARY}{secrets.token_hex(6)}")
        try:
            descriptor = open_new(temporary)
            try:
                write(descriptor, json.dumps(asdict(self._mine)).encode())
            finally:
                os.close(descriptor)
            try:
                self._path.hardlink_to(temporary)
            except FileExistsError:
                return False
            except OSError:
                return self._create_without_links()
            finally:
                with suppress(OSError):
                    unlink(temporary)
        except FileNotFoundError:
            return False  # another one ended, and removed the empty directory
        except OSError as error:
            raise StoreError(
                f"RunLock: could not write {self._path}: {error.strerror}. Choose another place."
            ) from error
        return True

    def _create_without_links(self) -> bool:
        try:
            descriptor = open_new(self._path)
        except FileExistsError:
            return False
        try:
            write(descriptor, json.dumps(asdict(self._mine)).encode())
        finally:
            os.close(descriptor)
        return True

    def _clear(self) -> None:
        """Remove a lock that may be removed, or refuse."""
        holder = _read(self._path)
        if not (self._steal or self._is_stale(holder)):
            who = "somebody" if holder is None else f"process {holder.pid} on {holder.host}"
            raise StoreError(
                f"RunLock: {self._path.parent} is in use by {who}. Wait for it, or if you are sure "
                f"that it has ended, remove {self._path}."
            )
        if _read(self._path) == holder:
            remove(self._path)

    def _is_stale(self, holder: Holder | None) -> bool:
        if holder is not None:
            left_by_us = holder == self._mine and self._path not in _held
            return left_by_us or holder.is_gone()
        try:
            return time.time() - self._path.stat().st_mtime > UNREADABLE_SECONDS
        except OSError:
            return True


def holder_of(directory: Path | str) -> Holder | None:
    """Return the process that holds a directory, unless it is known to have ended."""
    holder = _read(Path(directory).absolute() / NAME)
    return None if holder is None or holder.is_gone() else holder


def _read(path: Path) -> Holder | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text()[:4096])
        texts = all(isinstance(found[name], str) for name in ("host", "boot", "started"))
        return Holder(**found) if texts and isinstance(found["pid"], int) else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; empty where unknown."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19]
    return ""


def _is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
