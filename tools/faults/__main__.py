"""``python -m tools.faults``: faults on purpose, and the table of what came of them."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.faults.commands import SONDE, Commands
from tools.faults.damaging import Faults, damaged_files, damaged_run, damaged_store
from tools.faults.disturbing import (
    changed_data,
    full_disk,
    other_writer,
    small_disk,
    two_writers,
)
from tools.faults.jobs import Bench, Job, Sizes, Undisturbed, prepare, undisturbed
from tools.faults.killing import kill_trials, worker_trials
from tools.faults.serving import damaged_servers, killed_servers
from tools.faults.trial import Trial, table

FULL, QUICK = Sizes(12_000, 20_000, 6_000, 1024), Sizes(2_000, 9_000, 400, 1024)
SMALL = Sizes(2_000, 1_500, 400, 512)
SHARES = {
    "fit": 14,
    "fit --workers 2": 8,
    "read": 12,
    "read --workers 2": 4,
    "read --append": 4,
    "merge": 8,
}
QUICK_SHARES = {"fit": 3, "read": 2, "merge": 1}
WORKER_SHARES = {"fit --workers 2": 7, "read --workers 2": 3}
KINDS = ("kill", "workers", "disk", "damage", "stores", "writers", "data", "serve")


def shares(n: int, quick: bool) -> dict[str, int]:
    """Return how many of ``n`` kills each job gets.

    Examples
    --------
    >>> shares(50, False)["fit"], sum(shares(50, False).values()), sum(shares(7, True).values())
    (14, 50, 7)
    """
    return dealt(n, QUICK_SHARES if quick else SHARES)


def dealt(n: int, of: Mapping[str, int]) -> dict[str, int]:
    """Deal out kills to jobs by their shares."""
    total, given, found = sum(of.values()), 0, {}
    seen = 0
    for name, share in of.items():
        seen += share
        found[name] = round(n * seen / total) - given
        given += found[name]
    return {name: k for name, k in found.items() if k}


@dataclass
class Trials:
    """Every trial of the kinds that were asked for; jobs run undisturbed when first needed."""

    bench: Bench
    quick: bool
    rng: random.Random
    wholes: dict[tuple[str, bool], Undisturbed] = field(default_factory=dict)

    def of(self, kind: str, kills: int) -> Iterator[Trial]:
        """Yield the trials of one kind of faults."""
        if kind == "kill":
            for name, n in shares(kills, self.quick).items():
                yield from kill_trials(*self.undisturbed(name), n, self.rng)
            return
        if kind == "workers":
            for name, n in dealt(kills // 4 if self.quick else kills, WORKER_SHARES).items():
                yield from worker_trials(*self.undisturbed(name), n, self.rng)
            return
        yield from getattr(self, f"_{kind}")()

    def undisturbed(self, name: str, forked: bool = False) -> tuple[Bench, Job, Undisturbed]:
        """Return a job and its undisturbed result; ``forked`` saves imports if no job is killed."""
        bench = self.bench.forked() if forked else self.bench
        if name in ("read --append", "read --add-sites"):
            self.undisturbed("read", forked)
        key = name, bench.commands.forked
        if key not in self.wholes:
            folder = bench.top / f"whole {' '.join(map(str, key))}"
            self.wholes[key] = undisturbed(bench, bench.jobs[name], folder)
            times = f"{self.wholes[key].begins:.1f} to {self.wholes[key].ends:.1f} s"
            say(f"{name}: works from {times} of its process time")
        return bench, bench.jobs[name], self.wholes[key]

    def _disk(self) -> Iterator[Trial]:
        for name in ("fit", "read", "merge"):
            job = self.undisturbed(name, forked=True)
            yield from full_disk(*job, self.rng, 1 if self.quick else 4)
            if name == "read" or not self.quick:
                yield from small_disk(*job, self.rng)

    def _damage(self) -> Iterator[Trial]:
        bench, _, merged = self.undisturbed("merge", forked=True)
        faults = Faults(self.rng, self.quick)
        yield from damaged_files(bench, merged, faults)
        yield from damaged_run(*self.undisturbed("fit", forked=True), faults)

    def _stores(self) -> Iterator[Trial]:
        faults = Faults(self.rng, self.quick)
        yield from damaged_store(*self.undisturbed("read", forked=True), faults)
        for name, below in (("read --append", "data/1"), ("read --add-sites", "sites/1")):
            yield from damaged_store(*self.undisturbed(name, forked=True), faults, below)

    def _writers(self) -> Iterator[Trial]:
        for name in ("fit", "read") if self.quick else ("fit", "read", "merge"):
            yield from two_writers(*self.undisturbed(name, forked=True))
        for name in ("fit",) if self.quick else ("fit", "read"):
            yield from other_writer(*self.undisturbed(name, forked=True))

    def _serve(self) -> Iterator[Trial]:
        bench = self.bench.forked() if self.quick else self.bench
        yield from killed_servers(bench, self.rng, 2 if self.quick else 10)
        yield from damaged_servers(bench, Faults(self.rng, quick=False))

    def _data(self) -> Iterator[Trial]:
        for name in ("fit", "read"):
            n = 1 if self.quick else 3
            yield from changed_data(*self.undisturbed(name, forked=True), self.rng, n)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.faults",
        description="Kill, starve, damage and disturb runs of sonde, and compare what they write.",
        epilog="Example: python -m tools.faults --kills 50 --seed 1",
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small data, no imports anew")
    parser.add_argument(
        "--small", action="store_true", help="as --quick, and all rows of a store in one file"
    )
    parser.add_argument("--only", action="append", choices=KINDS, help="one kind of faults")
    parser.add_argument("--program", help="a file that runs sonde, in place of python -m sonde")
    typed = parser.parse_args(arguments)
    typed.only = typed.only or list(KINDS)
    typed.quick |= typed.small
    return typed


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every fault, print the table; return 1 if one was not survived."""
    typed = parsed(arguments)
    program = (typed.program,) if typed.program else SONDE
    with tempfile.TemporaryDirectory(prefix="sonde-faults-") as name:
        top = Path(name)
        commands = Commands(top / "source", program, typed.quick)
        sizes = SMALL if typed.small else QUICK if typed.quick else FULL
        bench = prepare(top, sizes, commands)
        every = Trials(bench, typed.quick, random.Random(typed.seed))
        trials = []
        for kind in typed.only:
            for trial in every.of(kind, typed.kills):
                trials.append(trial)
                state = "survived" if trial.survived else f"NOT survived: {trial.wrong or 'taken'}"
                say(f"{trial.fault} in {trial.where}: {state}; {trial.seen}")
    print(table(trials))
    return int(any(trial.is_fault_of_ours for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
