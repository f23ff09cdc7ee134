"""Streams that tests of clusters send to workers."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from run_case import rows
from sonde.core.batch import Batch
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.engine.array_stream import ArrayStream
from sonde.engine.derived import DerivedStream


@contextmanager
def two_cpus() -> Iterator[None]:
    """Run Ray with two CPUs, whatever the machine has."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():  # Ray starts its processes by a fork and an exec at once
        warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
        )
    yield
    ray.shutdown()


@dataclass(frozen=True, eq=False)
class Around(DerivedStream):
    """Another stream with something that happens at each unit; made for workers."""

    inner: Stream

    def happen(self, start: int) -> None:
        """Do what the test is about."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        if stop - start > 2:
            self.happen(start)
        yield from self.inner.batches(start, stop)


@dataclass(frozen=True, eq=False)
class Slow(Around):
    """Writes the ids of the processes that work, and takes its time."""

    place: Path
    seconds: float = 0.1

    def happen(self, start: int) -> None:
        (self.place / f"{os.getpid()}.pid").touch()
        time.sleep(self.seconds)


@dataclass(frozen=True, eq=False)
class Broken(Around):
    """Fails at one unit in a way that is named."""

    how: str
    at: int = 0
    driver: int = 0

    def happen(self, start: int) -> None:
        if start != self.at or os.getpid() == self.driver:
            return
        if self.how == "dies":
            os._exit(137)
        if self.how == "hangs":
            time.sleep(3600)
        if self.how == "memory":
            ask_for_too_much()
        raise {
            "files": FileNotFoundError(2, "No such file or directory", "weights.safetensors"),
            "input": InputError("item 3 is broken."),
            "own": ZeroDivisionError("by the user's model"),
        }[self.how]


@dataclass(frozen=True, eq=False)
class Deadly(Around):
    """Kills the first process that comes to a unit, which leaves a file."""

    mark: Path
    at: int

    def happen(self, start: int) -> None:
        if start == self.at and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def ask_for_too_much() -> None:
    """Allocate a GiB where the system gives this process 256 MiB more than it has."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        torch.empty(1 << 30, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass(frozen=True, eq=False)
class Elsewhere(Around):
    """Has data in the process that made it alone."""

    driver: int

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        if os.getpid() == self.driver:
            yield from self.inner.batches(start, stop)


def source(n: int = 640, dim: int = 6) -> ArrayStream:
    """Return rows of noise at one site."""
    return Stream.of(rows(n, dim))
