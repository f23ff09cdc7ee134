"""Runs that are killed at a chosen file primitive, all in one process.

As a program it does so at every primitive; without the type checks of pytest that takes seconds.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ledger_case import Job, case
from sonde.files import durable
from sonde.files.lock import RunLock
from sonde.files.state_file import write_state
from sonde.run.passes.ledger import Ledger


class Killed(BaseException):
    """The process is gone: nothing after this may change a file."""


@contextmanager
def killed_at(n: int) -> Iterator[None]:
    """Make the n-th file primitive raise, and every one after it; a write stops half-way."""
    calls: list[str] = []
    real = {name: getattr(durable, name) for name in durable.PRIMITIVES}

    def wrapped(name):
        def call(*arguments):
            calls.append(name)
            if len(calls) == n and name == "write":
                half = memoryview(arguments[1]).cast("B")
                real["write"](arguments[0], half[: len(half) // 2])
            if len(calls) >= n:
                raise Killed
            return real[name](*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in durable.PRIMITIVES:
            patch.setattr(durable, name, wrapped(name))
        yield


def fit(directory: Path, job: Job, order: random.Random | None = None) -> None:
    """Run what is missing, in any order, and write the final state beside the run directory."""
    run = directory / "fit.run"
    with RunLock(run):
        ledger = Ledger(run, job.plan, job.wanted, durable=False)
        todo = ledger.missing()
        if order is not None:
            order.shuffle(todo)
        for start, stop in todo:
            put(ledger, job, start, stop)
            ledger.compact()
        states, counters = ledger.finish()
        write_state(directory / "fit.sonde", {"counters": counters}, states, durable=False)
        ledger.remove()


def put(ledger: Ledger, job: Job, start: int, stop: int) -> None:
    if stop - start == 1:
        ledger.put(start, stop, *job.leaf(start))
        return
    for unit in range(start, stop):
        ledger.put(unit, unit + 1, *job.leaf(unit))


def undisturbed(tmp_path: Path, job: Job) -> bytes:
    place = tmp_path / "whole"
    place.mkdir()
    fit(place, job)
    assert [p.name for p in place.iterdir()] == ["fit.sonde"]
    return (place / "fit.sonde").read_bytes()


def attempt(directory: Path, job: Job, n: int, order: random.Random) -> bool:
    """Run until the n-th primitive; return whether it was reached."""
    with killed_at(n):
        try:
            fit(directory, job, order)
        except Killed:
            return True
    return False


def at_every_primitive(top: Path) -> int:
    """Kill at the n-th primitive, resume, compare; return how many there were."""
    job = case(0)
    expected = undisturbed(top, job)
    n, reached = 0, True
    while reached:
        n += 1
        place = top / f"{n}"
        place.mkdir()
        reached = attempt(place, job, n, random.Random(n))
        fit(place, job, random.Random(-n))
        compare(place, expected, n)
    return n - 1


def twice(top: Path) -> int:
    """Kill, and kill the resumed run again, several times; return how many runs were tried."""
    job = case(0)
    expected = undisturbed(top, job)
    tried = range(2, 200, 5)
    for n in tried:
        place = top / f"{n}"
        place.mkdir()
        order = random.Random(n)
        for kill in (n, 2, 5, 11, n // 2):
            attempt(place, job, kill, order)
        fit(place, job, order)
        compare(place, expected, n)
    return len(tried)


def compare(place: Path, expected: bytes, n: int) -> None:
    if (place / "fit.sonde").read_bytes() != expected:
        raise SystemExit(f"killed at primitive {n}: other bytes")
    rest = [p.name for p in place.iterdir() if p.name != "fit.sonde"]
    if any(durable.TEMPORARY not in name for name in rest):
        raise SystemExit(f"killed at primitive {n}: left {rest}")


if __name__ == "__main__":
    sys.stdout.write(
        str({"every": at_every_primitive, "twice": twice}[sys.argv[1]](Path(sys.argv[2])))
    )
