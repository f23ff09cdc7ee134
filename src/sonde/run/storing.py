"""Rows to disk by workers: each writes whole ranges of units into the folder that all share."""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sonde.core.errors import InputError, MachineError, SondeError, StoreError
from sonde.core.lock import RunLock
from sonde.core.plan import UNIT_SIZE
from sonde.core.stream import Stream
from sonde.run.crew import Crew, Job, hand_out
from sonde.run.ranges import Tick, token_in
from sonde.store.layout import RANGES
from sonde.store.writing import StoreWriter, write_store


@contextmanager
def dropped_if_empty(directory: Path) -> Iterator[None]:
    """Remove a store that this run began, where data or options are wrong before any row is kept.

    What is interrupted, or stopped by a full disk or for want of memory, stays: the same command
    goes on from there.
    """
    existed = directory.exists()
    try:
        yield
    except (StoreError, MachineError):
        raise
    except SondeError:
        if not existed and not any((directory / RANGES).glob("*.json")):
            shutil.rmtree(directory, ignore_errors=True)
        raise


@dataclass(frozen=True)
class StoreJob(Job):
    """Write a range of units into a store.

    Parameters
    ----------
    directory : Path
        The store, as the driver sees it.
    unit_size : int
    token : str
        Name of a file there: a worker that does not see it could only write elsewhere.
    """

    directory: Path
    unit_size: int
    token: str

    def begin(self, readable: bool = True) -> None:
        """Refuse a machine that does not see the folder."""
        super().begin(readable)
        if not (self.directory / self.token).exists():
            raise InputError(
                f"read: a worker does not see {self.directory}. Rows are written by the workers: "
                "choose a folder on a file system that all machines share."
            )

    @cached_property
    def _writer(self) -> StoreWriter:
        return StoreWriter(self.stream, self.directory, self.unit_size)

    def work(self, start: int, stop: int) -> int:
        """Write a range, unless it is there; return how many examples it holds."""
        self._writer.write([(start, stop)])
        bounds = self._writer.manifest.bounds
        return bounds[stop] - bounds[start]


def write_rows(
    stream: Stream,
    directory: str | Path,
    crew: Crew,
    *,
    unit_size: int = UNIT_SIZE,
    threads: int | None = None,
    fresh: bool = False,
    tick: Tick = lambda _: None,
) -> Path:
    """Write every row of a stream; the files are those of ``write_store``, whoever writes them.

    Parameters
    ----------
    stream : Stream
    directory : path
    crew : Crew
    unit_size : int, default=256
    threads : int or None, default=None
        Threads of each worker; None is 1. Without workers they are left as they are.
    fresh : bool, default=False
        Overwrite a store of another plan.
    tick : callable
        Called with the number of examples after each range.

    Raises
    ------
    StoreError
        If the folder holds another store, or cannot be written.
    InputError
        If workers cannot see the folder.
    """
    if not crew.is_apart:
        return write_store(stream, directory, unit_size=unit_size, fresh=fresh, tick=tick)
    place = Path(directory).absolute()
    with RunLock(place), token_in(place) as token:
        writer = StoreWriter(stream, place, unit_size)
        writer.start(fresh)
        bounds, missing = writer.manifest.bounds, writer.missing()
        rest = len(stream) - sum(bounds[b] - bounds[a] for a, b in missing)
        if rest:
            tick(rest)
        job = StoreJob(stream, crew.threads(threads), place, unit_size, token)
        with closing(hand_out(job, missing, crew)) as answers:
            for _, n in answers:
                tick(n)
    return Path(directory)
