"""Bytes that flip and files that end early, in every kind of file that sonde writes."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tools.faults.commands import Ended
from tools.faults.counting import Count
from tools.faults.disturbing import interrupted
from tools.faults.jobs import Bench, BenchError, Job, Undisturbed, finish, linked
from tools.faults.kinds import FINISHED, OF_A_RUN, OF_A_STORE, TRACK, Kind
from tools.faults.trial import Trial, judged, unclear

from sonde.alarms import Cusum
from sonde.engine.running import Running
from sonde.measure import Norms

FLIPPED, TRUNCATED = "a flipped byte", "a truncated file"
NO_CHECKSUM = " (no checksum)"


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
    """Yield trials of finished files: what reads one must refuse it, or say what it said before."""
    folder = bench.top / "finished"
    _finished(bench, merged, folder)
    for where, kind in FINISHED.items():
        sound = _said(bench, kind, folder) if kind.says else None
        for fault in faults:
            place = bench.top / f"{fault} {where}"
            linked(folder, place)
            seen = damage(place / kind.file, fault, faults.rng)
            ends = [bench.commands.run(_typed(bench, w), place) for w in kind.refused_by]
            said = _said(bench, kind, place) if sound else None
            same = said is not None and sound is not None and said.out == sound.out
            ends += [said] if said else []
            wrong = unclear(ends)
            if kind.hashed and any(e.code == 0 and not (same and e is said) for e in ends):
                wrong = "not noticed"
            if (place / "out.sonde").exists():
                wrong = "merged all the same"
            clear = all(e.code for e in ends)
            note = f"{seen}; {ends[0].said}"
            name = where if kind.hashed else f"{where}{NO_CHECKSUM}"
            yield Trial(fault, name, Count(), same, clear, wrong, note, not kind.hashed)
            shutil.rmtree(place)


def _typed(bench: Bench, words: str) -> list[str]:
    return words.format(source=bench.source).split()


def _said(bench: Bench, kind: Kind, folder: Path) -> Ended:
    """Return what the command that reads a file of this kind says."""
    ended = bench.commands.run(_typed(bench, kind.says), folder)
    (folder / "used.sonde").unlink(missing_ok=True)
    return ended


def _finished(bench: Bench, merged: Undisturbed, folder: Path) -> None:
    """Write one file of every kind."""
    (folder / TRACK).mkdir(parents=True)
    for name in ("left.sonde", "right.sonde"):
        shutil.copyfile(bench.source / name, folder / name)
    for name in ("merged.sonde", *(f"{TRACK}/step-{step:010d}.sonde" for step in (0, 5))):
        shutil.copyfile(merged.folder / "m.sonde", folder / name)
    running = Running(Norms())
    running.update(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    running.save(folder / "running.sonde")
    Cusum().after(0.5).save(folder / "watch.sonde")
    data = bench.source / "left.npz"
    _make(bench, folder, f"read nets:make {bench.source / 'right.npz'} --sites 2 -o acts")
    _make(bench, folder, f"score left.sonde nets:make {data} --limit 200 -o usual.csv")
    for kind in FINISHED.values():
        if kind.made:
            _make(bench, folder, f"{kind.made} -o {kind.file}")


def _make(bench: Bench, folder: Path, words: str) -> None:
    done = bench.sound.run(_typed(bench, words), folder)
    if done.code:
        raise BenchError(f"{words}: {done.said}")


def damaged_run(bench: Bench, job: Job, whole: Undisturbed, faults: Faults) -> Iterator[Trial]:
    """Yield trials in which a file of an interrupted run is damaged before it goes on."""
    begun = interrupted(bench, job, bench.top / f"begun {job.name}", whole, faults.rng)
    for where, part in OF_A_RUN.items():
        victim = faults.rng.choice(sorted(begun.rglob(part.pattern)))
        for fault in faults:
            folder = bench.top / f"{fault} {where}"
            linked(begun, folder)
            damaged = folder / victim.relative_to(begun)
            seen = damage(damaged, fault, faults.rng)
            first = finish(bench, job, folder)
            ends = [first]
            if first.code and where == "run: lock":
                damaged.unlink()  # as the error says
                ends.append(finish(bench, job, folder))
            elif first.code:
                ends.append(finish(bench, job, folder, "--fresh"))
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
    kinds = {
        f"store{', ' if below else ''}{below}: {name}": sorted(
            p.relative_to(store).as_posix() for p in (store / below).glob(part.pattern)
        )
        for name, part in OF_A_STORE.items()
        if not below or "/" in part.pattern
    }
    for where, names in kinds.items():
        for fault in faults:
            folder = bench.top / f"{fault} {where}"
            linked(whole.folder, folder)
            seen = damage(folder / job.output / faults.rng.choice(names), fault, faults.rng)
            found = _repaired(bench, job, folder)
            ends = [found.used, found.checked, found.repaired, found.again]
            trial = judged(fault, job, folder, whole, ends, f"{seen}; {found.checked.said}")
            wrong = trial.wrong if found.checked.code else "not noticed by verify"
            if found.used.code == 0 and not below.startswith("sites/") and "rows/" in names[0]:
                wrong = "rows of other bytes were fitted"
            yield replace(trial, where=where, wrong=wrong)
            shutil.rmtree(folder)


def _repaired(bench: Bench, job: Job, folder: Path) -> _Repaired:
    run = bench.commands.run
    words = f"fit norms {job.output} -o used.sonde --sites 2"
    used = run(words.split(), folder)
    checked = run(("verify", job.output), folder)
    repaired = run(("verify", job.output, "--repair"), folder)
    return _Repaired(used, checked, repaired, finish(bench, job, folder))
