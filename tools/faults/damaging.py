"""Bytes that flip and files that end early, in every kind of file that sonde writes."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tools.faults.commands import Ended
from tools.faults.counting import Count
from tools.faults.disturbing import interrupted
from tools.faults.jobs import Bench, BenchError, Job, Undisturbed, finish, linked
from tools.faults.trial import Trial, judged, unclear

FLIPPED, TRUNCATED = "a flipped byte", "a truncated file"


TRACK = "run.track"
PAGES = (
    ("report", "json", "scan - {source}/scan.npz"),
    ("report", "html", "scan - {source}/scan.npz"),
    ("difference", "html", "scan --diff report.json report.json"),
    ("drift", "json", "drift left.sonde right.sonde"),
    ("drift", "html", "drift left.sonde right.sonde"),
    ("scores", "html", "score left.sonde nets:make {source}/right.npz"),
)


@dataclass
class Faults:
    """Which faults each kind of file gets: both, or each in its turn where it must be quick."""

    rng: random.Random
    quick: bool
    _turn: int = 0

    def __iter__(self) -> Iterator[str]:
        both = (FLIPPED, TRUNCATED)
        self._turn += 1
        yield from both[self._turn % 2 :][:1] if self.quick else both


def damage(path: Path, fault: str, rng: random.Random) -> str:
    """Put damaged bytes in the place of a file; the file itself, which may be linked, stays."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if fault == FLIPPED:
        content[at] ^= 1 << rng.randrange(8)
    else:
        del content[at:]
    path.unlink()
    path.write_bytes(content)
    return f"{path.name} at byte {at:,}"


def damaged_files(bench: Bench, merged: Undisturbed, faults: Faults) -> Iterator[Trial]:
    """Yield trials of finished files: every command that reads one must refuse it."""
    folder = bench.top / "finished"
    folder.mkdir()
    shutil.copyfile(merged.folder / "m.sonde", folder / "merged.sonde")
    for name in ("left.sonde", "right.sonde"):
        shutil.copyfile(bench.source / name, folder / name)
    some = bench.source / "right.npz"
    _pages(bench, folder)
    _track(folder)
    readers = {
        "state": ("left.sonde", "merge left.sonde right.sonde -o out.sonde"),
        "merged state": ("merged.sonde", f"score merged.sonde nets:make {some} -o out.csv"),
        "step of a training": (f"{TRACK}/step-0000000005.sonde", ""),
        **{f"{name}, {kind.upper()}": (f"{name}.{kind}", "") for name, kind, _ in PAGES},
    }
    for where, (name, words) in readers.items():
        for fault in faults:
            place = bench.top / f"{fault} {where}"
            linked(folder, place)
            seen = damage(place / name, fault, faults.rng)
            checked = bench.commands.run(("verify", name.partition("/")[0]), place)
            ends = [bench.commands.run(words.split(), place)] if words else []
            wrong = unclear([checked, *ends])
            if checked.code == 0 or any(e.code == 0 for e in ends):
                wrong = "not noticed"
            if (place / "out.sonde").exists():
                wrong = "merged all the same"
            ok = not wrong
            yield Trial(fault, where, Count(), False, ok, wrong, f"{seen}; {checked.said}")
            shutil.rmtree(place)


def _pages(bench: Bench, folder: Path) -> None:
    """Write what commands say for people and machines."""
    for name, kind, words in PAGES:
        typed = words.format(source=bench.source).split()
        done = bench.commands.run((*typed, "-o", f"{name}.{kind}"), folder)
        if done.code:
            raise BenchError(f"{words}: {done.said}")


def _track(folder: Path) -> None:
    """Make a folder as a training leaves it."""
    (folder / TRACK).mkdir()
    for step in (0, 5):
        shutil.copyfile(folder / "left.sonde", folder / TRACK / f"step-{step:010d}.sonde")


def damaged_run(bench: Bench, job: Job, whole: Undisturbed, faults: Faults) -> Iterator[Trial]:
    """Yield trials in which a file of an interrupted run is damaged before it goes on."""
    begun = interrupted(bench, job, bench.top / f"begun {job.name}", whole, faults.rng)
    states = sorted(begun.rglob("states/*.sonde"))
    victims = {
        "run: plan": next(begun.rglob("plan.json")),
        "run: states": faults.rng.choice(states),
    }
    for where, victim in victims.items():
        for fault in faults:
            folder = bench.top / f"{fault} {where}"
            linked(begun, folder)
            seen = damage(folder / victim.relative_to(begun), fault, faults.rng)
            first = finish(bench, job, folder)
            ends = [first] if first.code == 0 else [first, finish(bench, job, folder, "--fresh")]
            trial = judged(fault, job, folder, whole, ends, f"{seen}; {first.said}")
            yield replace(trial, where=where)
            shutil.rmtree(folder)


@dataclass(frozen=True)
class _Repaired:
    """A damaged store: what reading says, what the check says, and the way back."""

    used: Ended
    checked: Ended
    repaired: Ended
    again: Ended


def damaged_store(
    bench: Bench, job: Job, whole: Undisturbed, faults: Faults, below: str = ""
) -> Iterator[Trial]:
    """Yield trials in which a file of a store is damaged, found, removed and written again.

    ``below`` is the folder of data or sites that were added: the command that added them writes
    their rows again, while their manifest goes with that of the whole store.
    """
    store = whole.folder / job.output
    places = {"record": "ranges/*", "examples": "rows/examples/*", "rows": "rows/pooled/*"}
    if not below:
        places = {"manifest": "store.json", "groups": "groups.arrow", **places}
    kinds = {
        f"store{', ' if below else ''}{below}: {name}": sorted(
            p.relative_to(store).as_posix() for p in (store / below).glob(pattern)
        )
        for name, pattern in places.items()
    }
    for where, names in kinds.items():
        for fault in faults:
            folder = bench.top / f"{fault} {where}"
            linked(whole.folder, folder)
            seen = damage(folder / job.output / faults.rng.choice(names), fault, faults.rng)
            found = _repaired(bench, job, folder)
            ends = [found.used, found.checked, found.repaired, found.again]
            trial = judged(fault, job, folder, whole, ends, f"{seen}; {found.checked.said}")
            trial = replace(trial, where=where)
            yield trial if found.checked.code else replace(trial, wrong="not noticed by verify")
            shutil.rmtree(folder)


def _repaired(bench: Bench, job: Job, folder: Path) -> _Repaired:
    run = bench.commands.run
    words = f"fit norms {job.output} -o used.sonde --sites 2"
    used = run(words.split(), folder)
    checked = run(("verify", job.output), folder)
    repaired = run(("verify", job.output, "--repair"), folder)
    return _Repaired(used, checked, repaired, finish(bench, job, folder))
