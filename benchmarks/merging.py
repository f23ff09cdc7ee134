"""Where merging becomes the bottleneck between 1 and 1,000 workers.

Measured on this machine: seconds of a unit in one worker, of the commit of its states, and of the
driver's merges (read, check, merge, write, sync, remove), for each commit where two wait and where
many do. Computed from these, for both places where merging happens. Workers that share the run
directory merge what they commit, one merge for each commit, so nobody is a bottleneck. Where they
do not, the driver merges all: it keeps up with as many workers as merges fit into the time of one
range, and above that more workers are no faster.
"""

import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clustering import LENGTH, PER_BATCH
from benchmarks.nets import Tokens, encoder, transformer
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.instrument import Every
from sonde.core.plan import UNIT_SIZE, Plan
from sonde.core.stream import Stream
from sonde.engine.passes import observe_unit
from sonde.engine.requests import Request
from sonde.run.passes.ledger import FOLD_BYTES, Ledger
from sonde.run.passes.memory import commit_level, state_bytes
from sonde.stats import Moments
from sonde.tap import live_stream

WORKERS = (1, 10, 100, 1000)
UNITS = 4096
MANY, FEW = 64, 4
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Measured times of one set of states; ``n_sites`` of ``sites`` were measured, times scaled."""

    name: str
    unit_seconds: float
    put_seconds: float
    merge_seconds: float
    many_seconds: float
    size_bytes: int
    level: int
    n_units: int = UNITS

    def range_seconds(self, faster: float = 1.0) -> float:
        """Return the seconds that a worker spends on each commit."""
        return 2**self.level * self.unit_seconds / faster + self.put_seconds

    def most_workers(self, faster: float = 1.0) -> float:
        """Return the workers with which one driver merges all the time."""
        return self.range_seconds(faster) / self.many_seconds

    def speed_up(self, workers: int, faster: float = 1.0, shared: bool = True) -> float:
        """Return how many times as fast as one worker the plan is done."""
        n = self.n_units >> self.level
        each = self.range_seconds(faster) + (self.merge_seconds if shared else 0.0)
        alone, turns = n * (self.range_seconds(faster) + self.merge_seconds), -(-n // workers)
        last = self.level_of_tree * self.merge_seconds
        return alone / (max(turns * each, 0.0 if shared else n * self.many_seconds) + last)

    @property
    def level_of_tree(self) -> int:
        """Merges that wait for the last commit."""
        return max(0, (self.n_units >> self.level).bit_length() - 1)


def merge_rows(size: Size) -> list[Row]:
    """Print the table and return the number of workers that one driver keeps up with."""
    depth, width, sample = size.pick((12, 768, 64), (2, 64, 32))
    unit = _unit_seconds(depth, width, sample)
    wide, sites = size.pick((2048, 32), (128, 4))
    cases = [
        measured_case(f"variances at {depth} sites of {width}", unit, width, depth, depth, "diag"),
        measured_case(
            f"covariances at {depth} sites of {width}", unit, width, depth, depth, "full"
        ),
        measured_case(
            f"covariances at {sites} sites of {wide}",
            unit * sites * wide**2 / (depth * width**2),
            wide,
            sites,
            2,
            "full",
        ),
    ]
    print(_table(cases))
    return [
        Row(
            "merge-scale",
            f"{case.name}: workers{how} that one driver merges for",
            case.most_workers(faster),
            unit="workers",
            note=f"commit of {2**case.level} units, {case.size_bytes / MIB:.1f} MiB, "
            f"in {case.range_seconds(faster):.2f} s, merged in {case.many_seconds:.4f} s "
            f"where many wait, {case.merge_seconds:.4f} s where two do",
        )
        for case in cases
        for how, faster in (("", 1.0), (" 100 times as fast", 100.0))
    ]


def _unit_seconds(depth: int, width: int, n: int) -> float:
    """Return what a unit takes in one thread, from fewer texts."""
    stream = live_stream(
        encoder(transformer(depth, width)), Tokens(n, LENGTH, PER_BATCH), logits=False
    )
    wanted = _requests(stream, "full")
    observe_unit(stream.batches(0, min(n, PER_BATCH)), wanted)
    began = time.monotonic()
    observe_unit(stream.batches(0, n), wanted)
    return (time.monotonic() - began) * UNIT_SIZE / n


def _requests(stream: Stream, scatter: str) -> dict[str, Request]:
    made = Moments(scatter)  # pyright: ignore[reportArgumentType]
    found = [Request(made, (s.key,), Every(), "all") for s in stream.schema]
    return dict(sorted((r.id, r) for r in found))


def measured_case(
    name: str,
    unit_seconds: float,
    width: int,
    n_sites: int,
    n_measured: int,
    scatter: str,
    *,
    place: str = "",
    n_units: int = UNITS,
    turns: int = 3,
) -> Case:
    """Measure commit and merge at ``n_measured`` sites and scale them to ``n_sites``.

    Runs lie in a temporary folder, or under the address ``place``. With one turn, two commits stand
    for many too.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = {f"x{i}": torch.randn(256, width, generator=generator) for i in range(n_measured)}
    stream = Stream.of(rows)
    wanted = _requests(stream, scatter)
    scale = round(n_sites / n_measured)
    wide = [s for s in stream.schema for _ in range(scale)]
    every = {f"{r.id}{i}": r for r in wanted.values() for i in range(scale)}
    size_bytes = state_bytes(wanted, stream.schema) * scale
    many = MANY if size_bytes < FOLD_BYTES / MANY else FEW
    two = [_merged(stream, wanted, 2, place) for _ in range(turns)]
    more = [_merged(stream, wanted, many, place) for _ in range(turns)] if turns > 1 else two
    return Case(
        name,
        unit_seconds,
        min(put for put, _ in two) * scale,
        min(merge for _, merge in two) * scale,
        min(merge for _, merge in more) * scale,
        size_bytes,
        commit_level(every, wide, n_units),
        n_units,
    )


def _merged(
    stream: Stream, wanted: dict[str, Request], n: int, place: str = ""
) -> tuple[float, float]:
    """Return the seconds of one commit, and of the merges for each of ``n`` that wait."""
    states = observe_unit(stream.batches(0, len(stream)), wanted)
    plan = Plan(stream.identity(), tuple(wanted), tuple(range(n + 1)))
    with tempfile.TemporaryDirectory() as folder:
        run = f"{place}/{uuid.uuid4().hex}.run" if place else Path(folder) / "a.run"
        ledger = Ledger(run, plan, wanted)
        began = time.monotonic()
        for unit in range(n):
            ledger.put(unit, unit + 1, states, {})
        put = (time.monotonic() - began) / n
        began = time.monotonic()
        ledger.compact()
        return put, (time.monotonic() - began) / (n - 1)


def _table(cases: list[Case]) -> str:
    lines = [
        f"{UNITS:,} units of {UNIT_SIZE} texts of {LENGTH} tokens: times as fast as one worker"
    ]
    heads = "".join(f"{n:>9,}" for n in WORKERS)
    lines.append(f"{'':<36}{'worker':>9}{'merges':>9}{heads}")
    for case in cases:
        for how, faster in (("as here", 1.0), ("100 x", 100.0)):
            for who in ("driver", "workers"):
                found = [case.speed_up(n, faster, who == "workers") for n in WORKERS]
                lines.append(f"{case.name:<36}{how:>9}{who:>9}{_joined(found)}")
    return "\n".join(lines)


def _joined(values: list[float]) -> str:
    return "".join(f"{value:>9.1f}" for value in values)
