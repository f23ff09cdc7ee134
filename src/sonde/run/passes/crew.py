"""Workers for the ranges of a plan: this process, local processes, or Ray actors."""

import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from sonde.core.errors import InputError
from sonde.run.passes.ranks import Ranks

Runner = Literal["local", "ray"]
RUNNERS: tuple[str, ...] = get_args(Runner)

PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Crew:
    """Workers of a plan.

    Parameters
    ----------
    workers : int, default=0
        Processes, or actors. 0 works in this process; on Ray, 0 starts as many actors as there is
        room for, each with the accelerators of the model, if any, and a CPU for each thread.
    runner : {"local", "ray"}, default="local"
    address : str or None, default=None
        A running Ray cluster, ``host:port`` or ``auto``; None starts one on this machine.
    patience_seconds : float, default=600
        A run on Ray fails if no worker answers for this time and for 20 times the usual time.
    ranks : Ranks, optional
        Ranks of ``torch.distributed`` that share the work; this process is rank 0.

    Raises
    ------
    InputError
        If a value is out of range, or ``address`` is given without Ray.
    """

    workers: int = 0
    runner: Runner = "local"
    address: str | None = None
    patience_seconds: float = PATIENCE_SECONDS
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"--workers: expected 0 or more, got {self.workers}.")
        if self.runner not in RUNNERS:
            raise InputError(f"--runner: expected local or ray, got {self.runner!r}.")
        if self.address is not None and self.runner != "ray":
            raise InputError("--address: expected --runner ray, because only Ray uses an address.")
        if self.ranks is not None and (self.workers or self.runner == "ray"):
            raise InputError(
                f"{self.ranks.word}: expected ranks or workers, got both. Leave workers= and "
                "runner= out with group=."
            )

    @property
    def is_apart(self) -> bool:
        """True if the work is done outside this process."""
        return self.workers > 0 or self.runner == "ray" or self.ranks is not None

    @property
    def is_first(self) -> bool:
        """True if this process writes, reports and shows the bar: no rank, or rank 0."""
        return self.ranks is None or self.ranks.rank == 0

    @property
    def workers_here(self) -> int:
        """Workers that share this machine's memory, as far as known before the start."""
        if self.runner == "local":
            return self.workers
        elsewhere = self.address or os.environ.get("RAY_ADDRESS")
        return 1 if elsewhere else max(1, self.workers)

    def threads(self, asked: int | None = None) -> int:
        """Return the threads of each worker: the requested number, else 1, or this process's."""
        if asked is not None:
            return asked
        return 1 if self.is_apart and self.ranks is None else torch.get_num_threads()


def n_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
