"""Write rows to disk by workers: each writes whole ranges of units into a shared folder."""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, MachineError, SondeError, StoreError
from sonde.core.plan import UNIT_SIZE
from sonde.core.state import canonical_json
from sonde.core.stream import Stream
from sonde.core.wording import gib
from sonde.engine.derived import innermost
from sonde.engine.progress import Bar
from sonde.files.durable import remove_tree
from sonde.files.lock import RunLock
from sonde.files.places import to_path
from sonde.run.passes.crew import Crew
from sonde.run.passes.hand_out import hand_out
from sonde.run.passes.job import Job
from sonde.run.passes.memory import allowed_bytes, forward_bytes_of
from sonde.run.passes.ranges import Tick, token_in
from sonde.run.passes.ranks import Ranks, is_shared_model
from sonde.run.passes.threads import using_threads
from sonde.store.layout import MANIFEST, RANGES
from sonde.store.outputs import check_folder
from sonde.store.writing import Fill, StoreWriter, fill
from sonde.tap import LiveStream


@contextmanager
def dropped_if_empty(directory: Path) -> Iterator[None]:
    """Remove a store that this run created, if data or options are invalid before a row is stored.

    The store stays after an interrupt, a full disk or a lack of memory: the same command goes on
    from there. A store that another run began here in the meantime stays too.
    """
    existed = directory.exists()
    try:
        yield
    except (StoreError, MachineError):
        raise
    except SondeError:
        with suppress(StoreError), RunLock(directory):
            if not existed and not any((directory / RANGES).glob("*.json")):
                remove_tree(directory)
        raise


@dataclass(frozen=True)
class StoreJob(Job):
    """Write a range of units into a store.

    Parameters
    ----------
    writer : StoreWriter
    token : str
        Name of a file in the store: a worker that does not see it could only write elsewhere.
    """

    writer: StoreWriter
    token: str

    def begin(self, readable: bool = True) -> None:
        """Raise if a worker's machine does not see the folder."""
        super().begin(readable)
        if not (self.writer.directory / self.token).exists():
            raise InputError(
                f"read: a worker cannot see the folder {self.writer.directory}. Workers write "
                "the rows themselves: choose a folder on a file system that all machines share."
            )

    def work(self, start: int, stop: int) -> int:
        """Write a range unless it exists; return its number of examples."""
        self.writer.write([(start, stop)])
        bounds = self.writer.manifest.bounds
        return bounds[stop] - bounds[start]


@dataclass(frozen=True)
class _RankJob(Job):
    """Work of another rank: write a range, or compute it together with rank 0, which writes it."""

    writer: StoreWriter

    def work(self, start: int, stop: int) -> int:
        """Work on a range; return its number of examples."""
        writer, bounds = self.writer, self.writer.manifest.bounds
        if not (writer.directory / MANIFEST).exists():
            raise InputError(
                f"read: a rank cannot see the folder {writer.directory}. Ranks write the rows "
                "themselves: choose a folder that all machines share, or a bucket."
            )
        if not is_shared_model(self.stream):
            writer.write([(start, stop)])
        else:
            for first, last in itertools.pairwise(bounds[start : stop + 1]):
                deque(self.stream.batches(first, last), maxlen=0)
        return bounds[stop] - bounds[start]


def write_over_ranks(
    stream: Stream,
    directory: str | Path,
    group: Any,
    *,
    unit_size: int = UNIT_SIZE,
    columns: Mapping[str, Any] | None = None,
    fresh: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Path:
    """Write every row of a stream into a store, shared over ranks; the files are those of one.

    Parameters
    ----------
    stream : Stream
        All of the data, on every rank.
    directory : path
        The store's folder, which all ranks see, or an address in object storage.
    group : ProcessGroup
        Ranks of ``torch.distributed`` that share the work, as ``distributed.group.WORLD`` under
        ``torchrun``. Every rank makes the same call; rank 0 plans, and shows the bar.
    unit_size : int, default=256
        Number of examples that are committed together.
    columns : mapping of str to sequence or array, optional
        Further columns, as in ``write_store``.
    fresh : bool, default=False
        Overwrite a store of another plan.
    threads : int or None, default=None
        Threads of each rank; None is torch's setting.
    memory : int or None, default=None
        Bytes that rows on their way to disk may take; None is 80 % of the free memory.
    progress : bool, default=True
        Whether rank 0 shows a progress bar on stderr.

    Raises
    ------
    InputError
        If ranks have different data, or do not see the folder.
    MachineError
        Naming a rank that ended or failed.
    """
    crew, place = Crew(ranks=Ranks(group, "read")), to_path(directory)
    n_threads = crew.threads(threads)
    writer = StoreWriter(stream, place, unit_size, columns)
    job = _RankJob(stream, n_threads, writer)
    forward_bytes_of(stream)  # a forward pass, which ranks that share a model run together

    def write() -> Path:
        check_folder(place)
        with RunLock(place), Bar("read", len(stream), progress) as bar:
            writer.start(fresh)
            filled_by(crew, n_threads, memory)(writer, bar.advance)
        return place

    assert crew.ranks is not None, "given two lines above"
    plan = canonical_json([writer.manifest.json(), n_threads])
    return crew.ranks.shared(job, hashlib.blake2b(plan.encode()).hexdigest(), write)


def filled_by(crew: Crew, threads: int | None = None, memory: int | None = None) -> Fill:
    """Return a function that fills a store's missing ranges, with equal files for any workers.

    Parameters
    ----------
    crew : Crew
    threads : int or None, default=None
        Threads to compute in; None is 1 for workers, else what this process has.
    memory : int or None, default=None
        Bytes that rows on their way to disk may take; None is 80 % of the free memory.

    Returns
    -------
    callable
        For ``write_store``, ``append_store`` and ``add_sites``. It raises an InputError if workers
        cannot see the folder, or rows need more memory than there is.
    """
    n_threads = crew.threads(threads)

    def alone(writer: StoreWriter, tick: Tick) -> None:
        _check_memory(writer, 1, memory)
        with using_threads(n_threads):
            fill(writer, tick)

    def together(writer: StoreWriter, tick: Tick) -> None:
        _check_memory(writer, crew.workers_here, memory)
        bounds, missing = writer.manifest.bounds, writer.missing()
        tick(bounds[-1] - sum(bounds[b] - bounds[a] for a, b in missing))
        with token_in(writer.directory) as token:
            job = StoreJob(writer.stream, n_threads, writer, token)
            with closing(hand_out(job, missing, crew)) as answers:
                for _, n in answers:
                    tick(n)

    return together if crew.is_apart else alone


def _check_memory(writer: StoreWriter, n_processes: int, limit: int | None) -> None:
    """Raise if the rows in transit need more memory than allowed.

    Raises
    ------
    InputError
        With what they take and how to need less.
    """
    live = innermost(writer.stream)
    inputs = live.inputs if isinstance(live, LiveStream) else None
    n_batch = min(getattr(inputs, "batch_size", writer.largest_unit), writer.largest_unit)
    forward, allowed = forward_bytes_of(writer.stream), allowed_bytes(limit)
    needed = n_processes * (writer.held_bytes(n_batch) + forward)
    if needed > allowed:
        each = f", in each of {n_processes} processes" if n_processes > 1 else ""
        raise InputError(
            f"read: rows that wait to be written and forward passes need about {gib(needed)} "
            f"(batches of {n_batch} examples, {gib(forward)} for a forward pass{each}), but "
            f"{gib(allowed)} are allowed. Take a smaller --batch-size or --unit-size, fewer sites "
            "or --workers, or raise --memory."
        )
