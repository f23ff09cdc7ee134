"""Who works on the ranges of a plan: this process, processes beside it, or actors on Ray.

Fits, stored rows and scores hand out their ranges of units in the same way: a ``Job`` says what a
worker does with one range, a ``Crew`` who the workers are. A range may be done twice, by a worker
that was lost after its commit and by the one that took its place; so what a job commits is the same
bytes under the same name each time, and nothing is added to anything.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from sonde.core.array_stream import ArrayStream
from sonde.core.derived import innermost
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.tap import LiveStream

Runner = Literal["local", "ray"]
RUNNERS: tuple[str, ...] = get_args(Runner)
Span = tuple[int, int]

PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Crew:
    """Who works on a plan.

    Parameters
    ----------
    workers : int, default=0
        Processes, or actors. 0 works in this process; on Ray it takes all that the cluster has: an
        actor for each device where the model is on one, else for each CPU.
    runner : {"local", "ray"}, default="local"
    address : str or None, default=None
        A running Ray cluster, ``host:port`` or ``auto``; None starts one on this machine.
    patience_seconds : float, default=600
        A run on Ray in which nothing is finished for so long, and for 20 times the usual, fails.

    Raises
    ------
    InputError
        If these contradict each other.
    """

    workers: int = 0
    runner: Runner = "local"
    address: str | None = None
    patience_seconds: float = PATIENCE_SECONDS

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"--workers: expected 0 or more, got {self.workers}.")
        if self.runner not in RUNNERS:
            raise InputError(f"--runner: expected local or ray, got {self.runner!r}.")
        if self.address is not None and self.runner != "ray":
            raise InputError("--address: expected --runner ray beside it, which it is for.")

    @property
    def is_apart(self) -> bool:
        """Whether others than this process do the work."""
        return self.workers > 0 or self.runner == "ray"

    @property
    def workers_here(self) -> int:
        """Workers that share the memory of this machine, as far as can be told before the start."""
        if self.runner == "local":
            return self.workers
        elsewhere = self.address or os.environ.get("RAY_ADDRESS")
        return 1 if elsewhere else max(1, self.workers)

    def threads(self, asked: int | None = None) -> int:
        """Return the threads of each worker: as asked, else 1, or what this process has."""
        if asked is not None:
            return asked
        return 1 if self.is_apart else torch.get_num_threads()

    def check(self) -> None:
        """Refuse a crew that cannot be had here, before any work starts.

        Raises
        ------
        InputError
            If Ray is asked for and not installed.
        """
        if self.runner == "ray":
            from sonde.run.workers._cluster import import_ray

            import_ray()

    def gathered(self, threads: int) -> AbstractContextManager[Any]:
        """Keep the connection to a cluster, or the one started here, for all passes of a run."""
        if self.runner != "ray":
            return nullcontext()
        from sonde.run.workers._cluster import connected

        return connected(self, threads)


@dataclass(frozen=True)
class Job(ABC):
    """What a worker does with a range of units. It is sent to workers, so it must be picklable.

    Parameters
    ----------
    stream : Stream
    threads : int
        Threads of each worker.
    """

    stream: Stream
    threads: int

    @abstractmethod
    def work(self, start: int, stop: int) -> Any:
        """Do the units ``[start, stop)`` in a worker; what it returns goes to the driver."""

    def devices(self) -> list[torch.device]:
        """Return the accelerators that one worker needs, in the order of their numbers."""
        live = innermost(self.stream)
        if not isinstance(live, LiveStream):
            return []
        found = {p.device for p in live.model.module.parameters()}
        real = [device for device in found if device.type not in ("cpu", "meta")]
        return sorted(real, key=lambda device: (device.type, device.index or 0))

    def begin(self, readable: bool = True) -> None:
        """Make a worker ready, and see whether it can read what the driver can.

        Raises
        ------
        InputError
            If the first example that the driver can read is not here.
        """
        torch.set_num_threads(self.threads)
        if readable and not can_read(self.stream):
            raise InputError(
                "run: the first example cannot be read in a worker. Put the data where every "
                "machine finds them under the same path."
            )


def can_read(stream: Stream) -> bool:
    """Return whether the first example is there; no model runs for that."""
    if isinstance(stream, ArrayStream) or not len(stream):
        return True
    live = innermost(stream)
    if isinstance(live, LiveStream):
        return next(iter(live.inputs.batches(0, 1)), None) is not None
    return next(iter(stream.batches(0, 1)), None) is not None


def hand_out(job: Job, spans: Sequence[Span], crew: Crew) -> Generator[tuple[Span, Any]]:
    """Yield each range with the answer of the worker that did it, in the order of completion.

    Close it, or exhaust it: workers end with it. On Ctrl-C the ranges that are being worked on are
    finished first.

    Raises
    ------
    InputError
        If the job cannot be sent, workers die, or a cluster cannot run it.
    """
    if not spans:
        return
    if crew.runner == "ray":
        from sonde.run.workers._ray import hand_out_on_ray as hand_out_apart
    else:
        from sonde.run.workers._processes import hand_out_to_processes as hand_out_apart
    yield from hand_out_apart(job, spans, crew)


def n_cores() -> int:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def using_threads(n: int | None) -> Iterator[None]:
    """Compute in ``n`` threads for one block; None leaves them as they are."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
