"""The work on one range of units: observe, fold along the fixed tree, commit under one name."""

import math
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sonde.core.batch import Batch
from sonde.core.plan import Plan
from sonde.core.stream import Stream
from sonde.engine.folding import fold, grow
from sonde.engine.passes import observe_unit
from sonde.engine.requests import Request, States
from sonde.files.durable import TEMPORARY, atomic_write, make_directory, remove
from sonde.run.passes.job import Job
from sonde.run.passes.ledger import STATES, Ledger

Tick = Callable[[int], None]
Files = list[tuple[str, bytes]]

SHARED = "shared"
STEP_SECONDS = 5.0


def commit_range(
    ledger: Ledger,
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    start: int,
    stop: int,
    tick: Tick = lambda _: None,
) -> None:
    """Process the units ``[start, stop)`` and commit them, or the finished ranges if stopped."""
    tree: list[tuple[int, States]] = []
    counts: list[Counter[str]] = []
    try:
        for unit in range(start, stop):
            counts.append(Counter())
            with unit_batches(stream, plan, unit, tick) as batches:
                states = observe_unit(batches, wanted, plan.split, counts[-1])
                tree = grow(wanted, tree, (0, states))
    except BaseException:
        _put_finished(ledger, start, tree, counts)
        raise
    ledger.put(start, stop, fold(wanted, tree), dict(_total(counts)))


@contextmanager
def unit_batches(stream: Stream, plan: Plan, unit: int, tick: Tick) -> Iterator[Iterator[Batch]]:
    """Yield the batches of a unit, and call ``tick`` with the number of examples done.

    ``tick`` is called after the first batch, which warms up, then at most every 5 seconds, and at
    the end for the remaining examples. So the work at the unit's end counts as its own step.
    """
    first, last = plan.bounds[unit], plan.bounds[unit + 1]
    ticked = 0

    def batches() -> Iterator[Batch]:
        nonlocal ticked
        done, since = 0, -math.inf
        for batch in stream.batches(first, last):
            yield batch
            done += len(batch)
            if time.monotonic() - since >= STEP_SECONDS and done < last - first:
                tick(done - ticked)
                ticked, since = done, time.monotonic()

    yield batches()
    tick(last - first - ticked)


def _put_finished(
    ledger: Ledger, start: int, tree: list[tuple[int, States]], counts: list[Counter[str]]
) -> None:
    """Commit the aligned ranges that were finished when a range was stopped."""
    first = start
    for level, states in tree:
        last = first + (1 << level)
        total = _total(counts[first - start : last - start])
        ledger.put(first, last, states, dict(total))
        first = last


def _total(counts: list[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counts:
        total.update(counter)
    return total


@dataclass(frozen=True)
class RangeJob(Job):
    """Commit the states of a range of units, or return them if the directory is not shared.

    Parameters
    ----------
    wanted : mapping of id to Request
    plan : Plan
    directory : Path
        The run directory, as the driver sees it.
    token : str
        Name of a file there. A worker that sees it shares the directory; empty: none does.
    durable : bool
    """

    wanted: Mapping[str, Request]
    plan: Plan
    directory: Path
    token: str
    durable: bool

    def work(self, start: int, stop: int) -> Files:
        """Commit a range and merge it with others; return the files that the driver cannot see."""
        if self.token and (self.directory / self.token).exists():
            self._commit(self.directory, start, stop, self.durable).climb(start, stop)
            return []
        with tempfile.TemporaryDirectory(prefix="sonde-") as name:
            make_directory(Path(name) / STATES)
            self._commit(Path(name), start, stop, False)
            return [(p.name, p.read_bytes()) for p in sorted((Path(name) / STATES).iterdir())]

    def _commit(self, directory: Path, start: int, stop: int, durable: bool) -> Ledger:
        ledger = Ledger(directory, self.plan, self.wanted, durable=durable, worker=True)
        commit_range(ledger, self.stream, self.wanted, self.plan, start, stop)
        return ledger


@contextmanager
def token_in(directory: Path) -> Iterator[str]:
    """Write a marker file into a directory; a worker that sees the file shares the directory."""
    for left in directory.glob(f"{SHARED}{TEMPORARY}*"):
        remove(left)
    name = f"{SHARED}{TEMPORARY}{secrets.token_hex(12)}"
    atomic_write(directory / name, b"", durable=False)
    try:
        yield name
    finally:
        remove(directory / name)
