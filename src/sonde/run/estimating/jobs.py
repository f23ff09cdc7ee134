"""Estimates of ``read``, ``fit`` and ``score``: what each runs on a sample, and what it holds."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch

from sonde.core.plan import UNIT_SIZE, Split
from sonde.core.reduction import AUTO
from sonde.core.statistic import Learner
from sonde.core.stream import Stream
from sonde.core.wording import gib
from sonde.engine.derived import innermost
from sonde.engine.passes import observe_unit
from sonde.engine.requests import Request, Task, requests
from sonde.files.machine import resident_bytes
from sonde.run.estimating.job_estimate import Cheaper, JobEstimate
from sonde.run.estimating.sampled import amount, sampled
from sonde.run.estimating.trials import (
    FIRST,
    Clock,
    Line,
    Trial,
    Work,
    bounds_of,
    growth_of,
    line_through,
    run_trial,
    run_trials,
)
from sonde.run.fitting.fit import DEFAULT_HELD, fit, make_plan, requests_of_pass
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.prepared import prepare
from sonde.run.instruments.entries import names_of
from sonde.run.instruments.stages import has_stages
from sonde.run.instruments.words import Asked
from sonde.run.passes.memory import (
    BASE,
    estimate,
    forward_bytes_of,
    rows_of_an_example,
    state_sizes,
)
from sonde.run.scoring.needs import needs_of_scoring
from sonde.run.scoring.score import score
from sonde.store.writing import StoreWriter, write_store
from sonde.tap import LiveStream

WORKERS = (4, 16)
FORWARD = "forward passes"
DOMINATES = 0.5
END_SECONDS = 5.0
"""Time that a trial of results at their full size may take beside the trials of the passes."""
SATURATED = 0.99
HELD_BYTES = 256 * 2**20
"""Rows on which single methods are timed; 8 examples may be more."""


@dataclass(frozen=True)
class Needs:
    """What a whole job holds.

    Parameters
    ----------
    memory_bytes : int
        States and rows in memory.
    added_bytes : int
        Peak memory beyond what this process holds now.
    disk_bytes : int or None, default=None
        Peak on disk; None is extrapolated from the files of the trials.
    n_passes : int, default=1
        Passes over the data.
    n_ranges : int, default=1
        Pieces of work that workers can share.
    n_walks : int, default=0
        Passes that run in one process, whatever the number of workers.
    held : callable, default=constant
        Size of the states that results are taken of, after a number of examples; results whose cost
        does not follow it are constant.
    closing : callable or None, default=None
        Runs the passes of a sample, then the whole job, and returns the seconds of the job; None:
        the work returns those of what follows the passes.
    closing_name : str, default="results and calibration"
        What follows the passes.
    parts : mapping of str to Line, optional
        Seconds of each method by the amount of data.
    """

    memory_bytes: int
    added_bytes: int
    disk_bytes: int | None = None
    n_passes: int = 1
    n_ranges: int = 1
    n_walks: int = 0
    held: Callable[[int], float] = lambda _: 1.0
    closing: Work | None = None
    closing_name: str = "results and calibration"
    parts: Mapping[str, Line] = field(default_factory=dict[str, Line])


def estimate_reading(
    stream: Stream,
    *,
    unit_size: int = UNIT_SIZE,
    examples: int | None = None,
    clock: Clock = time.perf_counter,
) -> JobEstimate:
    """Estimate the cost of writing every row of a stream to disk."""

    def work(part: Stream, folder: Path) -> float:
        write_store(part, folder / "acts", unit_size=unit_size)
        return 0.0

    writer = StoreWriter(stream, Path("acts"), unit_size)
    largest = writer.largest_unit
    n_batch = getattr(getattr(innermost(stream), "inputs", None), "batch_size", largest)
    held = writer.held_bytes(min(n_batch, largest))
    n_ranges = len(writer.manifest.ranges())
    needs = Needs(held, held + forward_bytes_of(stream), n_ranges=n_ranges)
    return estimated("read", stream, work, needs, examples, clock)


def estimate_fit(
    methods: Asked | Iterable[Asked],
    stream: Stream,
    *,
    calibrate: float | int = DEFAULT_HELD,
    reduction: str = AUTO,
    unit_size: int = UNIT_SIZE,
    threads: int | None = None,
    examples: int | None = None,
    clock: Clock = time.perf_counter,
) -> JobEstimate:
    """Estimate the cost of fitting methods, with their results and calibration."""
    settled = prepare(methods, stream, calibrate, reduction)
    wanted, _ = requests_of_pass(settled.tasks, settled.stream, settled.split)
    plan = make_plan(settled.stream, wanted, settled.split, unit_size, threads)
    whole = estimate(wanted, settled.stream, plan)

    def work(part: Stream, folder: Path) -> float:
        how = {"reduction": reduction, "unit_size": unit_size, "threads": threads}
        place = folder / "probe.run"
        fitted = fit(methods, part, calibrate=calibrate, directory=place, progress=False, **how)
        began = clock()
        _ = dict(fitted)
        fitted.save(folder / "probe.sonde")
        return clock() - began

    learners = [r.statistic for r in wanted.values() if isinstance(r.statistic, Learner)]
    n_walks = max((learner.n_passes() for learner in learners), default=0)
    n_stages = 1 + any(has_stages(task) for task in settled.tasks)
    needs = Needs(
        whole.state_bytes,
        whole.total_bytes,
        whole.disk_bytes,
        n_passes=n_stages * (len(learners) < len(wanted)) + n_walks,
        n_ranges=len(plan.commits()),
        n_walks=n_walks,
        held=largest_sizes(wanted, settled.stream),
        parts=_method_lines(settled.stream, settled.tasks, wanted, settled.split, clock),
    )
    return estimated("fit", settled.stream, work, needs, examples, clock)


def estimate_scoring(
    fitted: Fitted,
    stream: Stream,
    *,
    reduction: str = AUTO,
    explain: int = 0,
    examples: int | None = None,
    clock: Clock = time.perf_counter,
) -> JobEstimate:
    """Estimate the cost of scoring every row of a stream."""

    def work(part: Stream, folder: Path) -> float:
        score(fitted, part, reduction=reduction, explain=explain, progress=False)
        return 0.0

    needed = needs_of_scoring(fitted, stream, reduction=reduction, explain=explain)
    held = needed.scorers_bytes + needed.rows_bytes + needed.table_bytes
    n_ranges = len(stream.units()) - 1
    needs = Needs(held, needed.total_bytes, 0, n_ranges=n_ranges)
    return estimated("score", stream, work, needs, examples, clock)


def estimated(
    job: str,
    stream: Stream,
    work: Work,
    needs: Needs,
    examples: int | None = None,
    clock: Clock = time.perf_counter,
) -> JobEstimate:
    """Return the estimate of a job: its trials, extrapolated to the whole stream.

    Parameters
    ----------
    job : str
        Name of the job.
    stream : Stream
    work : callable
        Runs the job on a sample.
    needs : Needs
        What the whole job holds.
    examples : int or None, default=None
        Examples of the largest trial.
    clock : callable, default=time.perf_counter
        Clock that times the trials.
    """
    trials = run_trials(stream, work, examples, clock)
    closings = _closings(stream, work, needs, trials, clock)
    if closings[-1].n_examples > trials[-1].n_examples:
        trials = [*trials, closings[-1]]
    whole, n = amount(stream), len(stream)
    line, end = _rows_line(trials), _end(needs, closings, n)
    seconds = line.at(whole) + end
    lows, highs = zip(
        bounds_of(trials, lambda some: _rows_line(some).at(whole)),
        bounds_of(closings, lambda some: _end(needs, some, n)),
        strict=True,
    )
    low, high = sum(lows), sum(highs)
    disk = needs.disk_bytes
    if disk is None:
        line_of_disk = line_through([t.amount for t in trials], [t.disk_bytes for t in trials])
        disk = round(line_of_disk.at(whole))
    shared = line.rate * whole * (1 - needs.n_walks / max(1, needs.n_passes))
    workers = {k: seconds - shared + shared / min(k, needs.n_ranges) for k in WORKERS}
    per = rows_of_an_example(stream)
    reading = _reading_seconds(stream, trials[-1].n_examples, clock)
    forward = min(needs.n_passes * reading.at(whole), seconds)
    parts = {FORWARD: forward} if is_live(stream) else {}
    parts |= {name: method.at(whole) for name, method in needs.parts.items()}
    parts |= {needs.closing_name: end} if end else {}
    parts["everything else"] = max(0.0, seconds - sum(parts.values()))
    return JobEstimate(
        job=job,
        n_examples=n,
        n_tried=trials[-1].n_examples,
        n_rows=round(n * sum(per.values())),
        n_forwards=needs.n_passes * _forwards(stream) if is_live(stream) else 0,
        seconds=seconds,
        low_seconds=low,
        high_seconds=high,
        worker_seconds=workers,
        memory_bytes=needs.memory_bytes,
        disk_bytes=disk,
        peak_bytes=resident_bytes() + max(needs.added_bytes, BASE),
        parts=dict(sorted(parts.items(), key=lambda part: -part[1])),
        cheaper=_cheaper(job, stream, seconds, parts),
    )


def _rows_line(trials: Sequence[Trial]) -> Line:
    return line_through([t.amount for t in trials], [t.row_seconds for t in trials])


def _end(needs: Needs, trials: Sequence[Trial], n: int) -> float:
    """Return the time of results after ``n`` examples."""
    sizes, ends = [needs.held(t.n_examples) for t in trials], [t.end_seconds for t in trials]
    return ends[-1] * growth_of(sizes, ends, needs.held(n))


def _closings(
    stream: Stream, work: Work, needs: Needs, trials: Sequence[Trial], clock: Clock
) -> list[Trial]:
    """Return trials of what follows the passes.

    The last is of the size from which on the states do not grow, but of half of the data at most;
    it is left out if it would take longer than ``END_SECONDS``.
    """

    def closed(n: int) -> Trial:
        trial = run_trial(stream, n, needs.closing or work, clock)
        passes = 0.0 if needs.closing is None else trial.row_seconds
        return replace(trial, end_seconds=max(0.0, trial.end_seconds - passes))

    n = trials[-1].n_examples
    last = min(full_size(needs.held, len(stream)), len(stream) // 2)
    affordable = last > n and _rows_line(trials).at(last * trials[-1].amount / n) <= END_SECONDS
    ends = list(trials)
    if needs.closing is not None:
        closed(max(1, n // 4))  # warms up
        ends = [closed(size) for size in ((n,) if affordable else (max(1, n // 4), n))]
    if affordable and ends[-1].end_seconds > 0 and _end(needs, ends, last) <= END_SECONDS:
        ends.append(closed(last))
    return ends


def full_size(held: Callable[[int], float], n: int) -> int:
    """Return the number of examples after which the states are as large as after ``n``.

    Examples
    --------
    >>> full_size(lambda examples: min(examples, 100), 5000)
    99
    """
    return bisect_left(range(n), SATURATED * held(n), key=held)


def largest_sizes(wanted: Mapping[str, Request], stream: Stream) -> Callable[[int], float]:
    """Return the bytes of all states after a number of examples, as a function of it."""
    per = rows_of_an_example(stream)

    def held(n: int) -> float:
        sizes = state_sizes(wanted, stream.schema, {key: rows * n for key, rows in per.items()})
        return float(sum(sizes.values()))

    return held


def example_bytes(stream: Stream) -> float:
    """Return the bytes of an example's rows at all sites."""
    per = rows_of_an_example(stream)
    sizes = {s.key: s.dim * getattr(torch, s.dtype).itemsize for s in stream.schema}
    return sum(per[key] * size for key, size in sizes.items()) or 1.0


def is_live(stream: Stream) -> bool:
    """Return whether a model runs for the rows of a stream."""
    return isinstance(innermost(stream), LiveStream)


def _forwards(stream: Stream) -> int:
    """Return the number of forward passes of one pass over the data."""
    n_batch = getattr(getattr(innermost(stream), "inputs", None), "batch_size", 1)
    return sum(-(-(stop - start) // n_batch) for start, stop in pairwise(stream.units()))


def _reading_seconds(stream: Stream, n: int, clock: Clock) -> Line:
    """Return the time of reading rows alone."""
    part = sampled(stream, n, seed=1)
    began = clock()
    for start, stop in pairwise(part.units()):
        for _ in part.batches(start, stop):
            pass
    return Line(0.0, (clock() - began) / max(1.0, amount(part)))


def _method_lines(
    stream: Stream,
    tasks: Sequence[Task],
    wanted: Mapping[str, Request],
    split: Split | None,
    clock: Clock,
) -> dict[str, Line]:
    """Return the time that each method's statistics take of some rows in memory.

    A statistic that several methods read counts for the first.
    """
    most = max(FIRST, int(HELD_BYTES / example_bytes(stream)))
    part = sampled(stream, min(UNIT_SIZE, len(stream), most))
    batches = [b for start, stop in pairwise(part.units()) for b in part.batches(start, stop)]

    def seconds(some: Mapping[str, Request]) -> float:
        began = clock()
        observe_unit(batches, some, split)
        return clock() - began

    nothing = seconds({})
    lines: dict[str, Line] = {}
    seen: set[str] = set()
    for task, (word, _) in zip(tasks, names_of(tasks), strict=True):
        own = {i: r for i, r in requests([task], split).items() if i not in seen and i in wanted}
        seen |= set(own)
        taken = max(0.0, seconds(own) - nothing) if own else 0.0
        rate = lines.get(word, Line(0.0, 0.0)).rate + taken / max(1.0, amount(part))
        lines[word] = Line(0.0, rate)
    return lines


def _cheaper(
    job: str,
    stream: Stream,
    seconds: float,
    parts: Mapping[str, float],
) -> tuple[Cheaper, ...]:
    """Return the changes that would save most, each with the time that is left."""
    changes: list[Cheaper] = []
    forward, whole = parts.get(FORWARD, 0.0), sum(parts.values()) or 1.0
    if forward > DOMINATES * whole:
        if job != "read":
            size = round(len(stream) * example_bytes(stream))
            change = f"from rows on disk (sonde read once, {gib(size)}), each further {job}"
            others = sum(s for name, s in parts.items() if name != FORWARD)
            changes.append(Cheaper(change, max(seconds - forward, others)))
        changes.append(Cheaper("a tenth of the examples (--limit)", seconds / 10))
    methods = {k: s for k, s in parts.items() if k not in (FORWARD, "everything else")}
    for name, taken in sorted(methods.items(), key=lambda part: -part[1])[:1]:
        if len(methods) > 1 and taken > 0.1 * whole:
            changes.append(Cheaper(f"without {name}", seconds - taken))
    if len(stream.schema) > 1 and forward < DOMINATES * whole:
        changes.append(Cheaper("half of the sites (--sites)", forward + (seconds - forward) / 2))
    return tuple(changes)
