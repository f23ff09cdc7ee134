"""What workers on Ray give, and what they cost, on one machine.

Wall time, since the work is in other processes. Every worker has one thread. The arms of a pair run
one after the other, and the order turns. ``SONDE_RAY_SECONDS`` sets how long one worker works.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.nets import Tokens, encoder, transformer
from benchmarks.protocol import spread_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.instrument import Every
from sonde.core.plan import Plan
from sonde.core.stream import Stream
from sonde.engine.requests import Request
from sonde.run.fitting.fit import make_plan
from sonde.run.passes.crew import Crew, Runner
from sonde.run.passes.driver import run_pass
from sonde.stats import Moments
from sonde.tap import live_stream

FASTER, OVERHEAD = 1.7, 1.10
UNIT, LENGTH, PER_BATCH = 64, 64, 16
PAIRS = 5


@dataclass(frozen=True)
class Work:
    """A covariance at every block of a transformer over random texts."""

    stream: Stream
    wanted: dict[str, Request]
    plan: Plan

    @classmethod
    def of(cls, depth: int, width: int, n: int) -> "Work":
        """Return the work on ``n`` texts."""
        inputs = Tokens(n, LENGTH, PER_BATCH)
        stream = live_stream(encoder(transformer(depth, width)), inputs, logits=False)
        requests = [Request(Moments(), (s.key,), Every(), "all") for s in stream.schema]
        wanted = dict(sorted((r.id, r) for r in requests))
        return cls(stream, wanted, make_plan(stream, wanted, None, UNIT, 1))

    def run(self, crew: Crew) -> "Timed":
        """Return how long a pass took; what is committed is synced."""
        began, stamps = time.monotonic(), list[tuple[float, int]]()
        with tempfile.TemporaryDirectory() as name:
            run_pass(
                self.stream,
                self.wanted,
                self.plan,
                crew=crew,
                directory=Path(name) / "a.run",
                tick=lambda n: stamps.append((time.monotonic(), n)),
            )
            whole = time.monotonic() - began
        after = sum(n for _, n in stamps[1:])
        return Timed(whole, (stamps[-1][0] - stamps[0][0]) / after, stamps[0][0] - began)


@dataclass(frozen=True)
class Timed:
    """Seconds of a whole pass, for each text after the first finished unit, and until then."""

    whole: float
    each: float
    first: float


def ray_rows(size: Size) -> list[Row]:
    """Time two workers against a single worker, and a worker on Ray against a process."""
    depth, width = size.pick((6, 256), (2, 64))
    seconds = float(os.environ.get("SONDE_RAY_SECONDS", size.pick(60.0, 4.0)))
    few = Work.of(depth, width, 3 * UNIT)
    each = few.run(Crew()).each
    n = UNIT * max(6, round(seconds / (each * UNIT)))
    work = Work.of(depth, width, n)
    what = f"{depth} x {width}, {n} texts of {LENGTH}"
    pairs = min(PAIRS, size.rounds)
    return [*_faster(work, what, pairs), *_overhead(work, what, pairs)]


def _interleaved(arms: list[Callable[[], Timed]], pairs: int) -> list[list[Timed]]:
    """Return the times of each arm; the order turns with each pair."""
    taken: list[list[Timed]] = [[] for _ in arms]
    for turn in range(pairs):
        order = range(len(arms)) if turn % 2 == 0 else reversed(range(len(arms)))
        for i in order:
            taken[i].append(arms[i]())
    return taken


def _faster(work: Work, what: str, pairs: int) -> list[Row]:
    arms = [lambda n=n: work.run(Crew(n, "ray")) for n in (1, 2)]
    one, two = _interleaved(arms, pairs)
    found = [b.each / a.each for a, b in zip(one, two, strict=True)]
    median = statistics.median(found)
    rates = [t.each for t in one]
    noise = spread_of([r / statistics.median(rates) for r in rates])
    times = sorted(1 / f for f in found)
    return [
        Row(
            "ray",
            f"two workers against one, time of a text from the first finished unit ({what})",
            median,
            budget=1 / FASTER,
            spread=noise * median,
            rounds=pairs,
            note=f"{1 / median:.2f} x as fast, pairs {times[0]:.2f} to {times[-1]:.2f}",
        )
    ]


def _overhead(work: Work, what: str, pairs: int) -> list[Row]:
    arms = [lambda r=r: work.run(Crew(1, r)) for r in get_args(Runner)]
    local, ray = _interleaved(arms, pairs)
    whole = [b.whole / a.whole for a, b in zip(local, ray, strict=True)]
    each = [b.each / a.each for a, b in zip(local, ray, strict=True)]
    taken = [t.whole for t in local]
    seconds = statistics.median(taken)
    noise = spread_of([t / seconds for t in taken])
    first = [statistics.median(t.first for t in arm) for arm in (local, ray)]
    return [
        Row(
            "ray",
            f"one worker on Ray against one process, with the start of both ({what})",
            statistics.median(whole),
            budget=OVERHEAD,
            spread=noise,
            rounds=pairs,
            note=f"{seconds:.0f} s local; first unit after {first[0]:.1f} and {first[1]:.1f} s",
        ),
        Row(
            "ray",
            f"the same, time of a text from the first finished unit ({what})",
            statistics.median(each),
            spread=noise,
            rounds=pairs,
        ),
    ]
