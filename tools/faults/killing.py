"""Killed at random moments: a run, which the same command continues, or one of its workers."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tools.faults.commands import POLL_SECONDS, Commands, Running
from tools.faults.counting import committed, half_written
from tools.faults.jobs import Bench, BenchError, Job, Undisturbed, finish
from tools.faults.trial import Trial, judged

FAULT, OF_A_WORKER = "SIGKILL", "SIGKILL of a worker"
MOST_KILLS = 3
LEAST_LEFT = 0.15
AFTER = 0.02
SOONER = 0.7
LATE = 8
HANG_SECONDS = 180.0


def kill_trials(
    bench: Bench, job: Job, whole: Undisturbed, n_kills: int, rng: random.Random
) -> Iterator[Trial]:
    """Yield a trial for each of ``n_kills`` kills; a run is killed up to three times.

    The first kills of the runs are spread evenly over the time in which a run works.
    """
    n_runs = -(-n_kills // 2)
    moments = [(k + rng.random()) / n_runs for k in range(n_runs)]
    rng.shuffle(moments)
    done = too_late = 0
    number = 0
    while done < n_kills:
        if too_late > LATE * n_kills:
            raise BenchError(f"{job.name}: {done} of {n_kills} kills, all others came too late")
        number += 1
        folder = job.place(bench.top / f"kill {job.name} {number}")
        wanted = min(n_kills - done, rng.randint(1, MOST_KILLS))
        first = moments[(number - 1) % n_runs]
        sooner = SOONER**too_late
        chosen = [first * sooner, *(rng.random() for _ in range(wanted - 1))]
        seen = _kills(bench, job, whole, folder, chosen, rng)
        too_late += not seen
        if seen:
            ended = finish(bench, job, folder)
            left = half_written(folder)
            for what in seen:
                note = f"{what}; in the end {left} left over"
                yield judged(FAULT, job, folder, whole, [ended], note)
        done += len(seen)
        shutil.rmtree(folder)


def _kills(
    bench: Bench,
    job: Job,
    whole: Undisturbed,
    folder: Path,
    moments: list[float],
    rng: random.Random,
) -> list[str]:
    """Kill a run, and each time the same command continues; return what each kill met."""
    worked, seen = 0.0, []
    span = whole.ends - whole.begins
    for moment in moments:
        left = max(LEAST_LEFT * span, span - worked)
        at = moment * left
        after = min(AFTER, 0.5 * span) * rng.random()
        if not killed(bench.commands, job, folder, at, after, whole.begins):
            break
        worked += at
        units, halves = len(committed(folder)), half_written(folder)
        seen.append(f"after {at:.2f} s of {span:.2f}: {units} units, {halves} half-written")
    return seen


def killed(
    commands: Commands, job: Job, folder: Path, at: float, after: float, begins: float
) -> bool:
    """Kill the command once it has worked for ``at`` seconds; False if it ended before.

    The clock starts where the work does: imports take longer or shorter by more than a short
    job lasts. Where the sign was there before, it starts at ``begins`` of the process time.
    """
    with commands.start(job.words, folder) as running:
        began = begins if job.has_begun(running, folder) else None
        while not running.is_over():
            worked = running.cpu_seconds()
            if began is None and job.has_begun(running, folder):
                began = worked
            if began is not None and worked >= began + at:
                break
            time.sleep(POLL_SECONDS)
        time.sleep(after)
        if running.is_over():
            return False
        running.kill()
        return running.end().code == -9


def worker_trials(
    bench: Bench, job: Job, whole: Undisturbed, n_kills: int, rng: random.Random
) -> Iterator[Trial]:
    """Yield a trial for each of ``n_kills`` workers that are killed; the run is to end by itself.

    The moments are spread over the whole life of workers, from their start on. A run that does
    not end within ``HANG_SECONDS`` after its last kill has hung.
    """
    done = 0
    while done < n_kills:
        folder = job.place(bench.top / f"worker {job.name} {done}")
        moments = sorted(
            rng.random() for _ in range(min(n_kills - done, rng.randint(1, MOST_KILLS)))
        )
        with bench.commands.start(job.words, folder) as running:
            seen = _workers_killed(running, moments, whole, rng)
            ended = running.end(HANG_SECONDS)
        for what in seen:
            yield judged(OF_A_WORKER, job, folder, whole, [ended], what)
        done += len(seen)
        shutil.rmtree(folder)


def _workers_killed(
    running: Running, moments: list[float], whole: Undisturbed, rng: random.Random
) -> list[str]:
    """Kill a worker at each moment, a share of the process time from the first one to the end."""
    seen, first = [], None
    for moment in moments:
        while not running.is_over():
            worked, workers = running.cpu_seconds(), running.workers()
            first = worked if first is None and workers else first
            if first is not None and workers and worked >= first + moment * (whole.ends - first):
                running.kill_worker(victim := rng.choice(workers))
                seen.append(f"process {victim} after {worked:.2f} s of {whole.ends:.2f}")
                break
            time.sleep(POLL_SECONDS)
    return seen
