"""A full disk, two writers at once, and data that change between runs."""

import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tools.faults.commands import POLL_SECONDS, Ended
from tools.faults.counting import LOCK, Count, committed
from tools.faults.jobs import Bench, BenchError, Job, Undisturbed, finish
from tools.faults.trial import Trial, judged

SIZE_LIMIT, SMALL_DISK = "disk full (RLIMIT_FSIZE)", "disk full (small tmpfs)"
WRITERS, OTHER_WRITER = "two writers at once", "another run beside a live one"
CHANGED = "data changed between runs"
ROOM = 64 * 2**20
ATTEMPTS = 6


def full_disk(
    bench: Bench, job: Job, whole: Undisturbed, rng: random.Random, n: int
) -> Iterator[Trial]:
    """Yield trials in which no file may grow beyond a size below that of the largest one."""
    output = whole.folder / job.output
    files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
    largest = max(path.stat().st_size for path in files)
    for number in range(n):
        folder = job.place(bench.top / f"full {job.name} {number}")
        most = int(largest * rng.uniform(0.001, 0.95))
        first = bench.commands.run(job.words, folder, most_bytes=most)
        yield _gone_on(bench, job, folder, whole, SIZE_LIMIT, first, f"files up to {most:,} bytes")
        shutil.rmtree(folder)


def small_disk(bench: Bench, job: Job, whole: Undisturbed, rng: random.Random) -> Iterator[Trial]:
    """Yield a trial in a file system that is too small at first; nothing where none can be made."""
    output = whole.folder / job.output
    files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
    needed = sum(path.stat().st_size for path in files)
    size = int(needed * rng.uniform(0.3, 0.9))
    with small_file_system(bench.top / f"disk {job.name}", size) as disk:
        if disk is None:
            return
        folder = job.place(disk / "run")
        first = bench.commands.run(job.words, folder)
        kept = committed(folder)
        mount("-o", f"remount,size={4 * needed + ROOM}", str(disk))
        seen = f"{len(kept)} units kept on a disk of less than {needed:,} bytes"
        yield _gone_on(bench, job, folder, whole, SMALL_DISK, first, seen)


@contextlib.contextmanager
def small_file_system(place: Path, size: int) -> Iterator[Path | None]:
    """Mount a file system in memory for as long as this is open; None without permission."""
    place.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={max(size, 4096 * 16)}", "tmpfs", str(place))
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def mount(*words: str) -> None:
    """Run ``mount``."""
    subprocess.run(["mount", *words], check=True, capture_output=True)


def _gone_on(
    bench: Bench, job: Job, folder: Path, whole: Undisturbed, fault: str, first: Ended, seen: str
) -> Trial:
    """Return what comes of a run that met a full disk, and went on when there was room."""
    before, there = committed(folder), (folder / job.output).is_file()
    second = finish(bench, job, folder)
    trial = judged(fault, job, folder, whole, [first, second], f"{seen}; {first.said}")
    if first.code != 0 and there:
        return replace(trial, wrong=f"an output that is not whole ({first.said})")
    lost = before - committed(folder) if (folder / job.output).is_dir() else set()
    return replace(trial, count=Count(trial.count.lost + len(lost), trial.count.twice))


def two_writers(bench: Bench, job: Job, whole: Undisturbed) -> Iterator[Trial]:
    """Yield a trial in which the same command is started twice at once in one folder."""
    folder = job.place(bench.top / f"pair {job.name}")
    with (
        bench.commands.start(job.words, folder) as one,
        bench.commands.start(job.words, folder) as two,
    ):
        ends = [one.end(), two.end()]
    seen = " and ".join(f"exit {e.code}" for e in ends)
    trial = judged(WRITERS, job, folder, whole, ends, seen)
    if all(e.code for e in ends):
        trial = replace(trial, wrong=f"neither wrote: {ends[0].said}; {ends[1].said}")
    yield trial
    shutil.rmtree(folder)


def other_writer(bench: Bench, job: Job, whole: Undisturbed) -> Iterator[Trial]:
    """Yield a trial in which another plan is started on the folder of a run that is at work."""
    folder = job.place(bench.top / f"other {job.name}")
    other = tuple("32" if word == "64" else word for word in job.words)
    with bench.commands.start(job.words, folder) as one:
        while not one.is_over() and not (folder / job.sign).exists():
            pass
        one.hold()  # else it may be over before the other one gets to the lock
        second = bench.commands.run(other, folder)
        one.go_on()
        first = one.end()
    seen = f"exit {first.code} and {second.said}"
    trial = judged(OTHER_WRITER, job, folder, whole, [second, first], seen)
    yield trial if second.code == 2 or trial.wrong else replace(trial, wrong="it was let in")
    shutil.rmtree(folder)


def changed_data(
    bench: Bench, job: Job, whole: Undisturbed, rng: random.Random, n: int
) -> Iterator[Trial]:
    """Yield trials in which the data file is another one when the run goes on, and then comes back.

    The other data must be refused, what is committed stays, and with the first data it goes on.
    """
    source = next(Path(word) for word in job.words if word.endswith(".npz"))
    rows = np.load(source)["x"]
    other = rows.copy()
    other[len(rows) // 2, 0] += 1.0
    kinds = {"a value": other, "rows added": np.concatenate([rows, rows[:7]]), "cut": rows[:-7]}
    for kind, values in list(kinds.items())[:n]:
        folder = bench.top / f"changed {job.name} {kind}"
        data = bench.top / f"changing {source.name}"
        shutil.copyfile(source, data)
        mine = replace(job, words=tuple(str(data) if w == str(source) else w for w in job.words))
        interrupted(bench, mine, folder, whole, rng)
        before = committed(folder)
        np.savez(data, x=values)
        refused = finish(bench, mine, folder)
        lost = before - committed(folder)
        shutil.copyfile(source, data)
        last = finish(bench, mine, folder)
        trial = judged(CHANGED, job, folder, whole, [refused, last], f"{kind}: {refused.said}")
        if not refused.is_clear:
            trial = replace(trial, wrong=f"{kind}: taken ({refused.said})")
        yield replace(trial, count=Count(trial.count.lost + len(lost), trial.count.twice))
        shutil.rmtree(folder)


def interrupted(
    bench: Bench, job: Job, folder: Path, whole: Undisturbed, rng: random.Random
) -> Path:
    """Return a folder whose run was killed after a commit, and before it let go of the lock.

    A run that was over is killed earlier the next time: a machine is not always equally fast.
    """
    for attempt in range(ATTEMPTS):
        share = rng.uniform(0.3, 0.8) * (1 - attempt / ATTEMPTS)
        at = whole.begins + share * (whole.ends - whole.begins)
        job.place(folder)
        with bench.commands.start(job.words, folder) as running:
            while not running.is_over() and (running.cpu_seconds() < at or not committed(folder)):
                time.sleep(POLL_SECONDS)
            over = running.is_over()
        if not over and any(folder.rglob(LOCK)):
            return folder
        shutil.rmtree(folder)
    raise BenchError(f"{job.name}: could not be killed between its first commit and its end")
