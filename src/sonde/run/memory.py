"""How much memory a pass takes, before it starts; and how often it commits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonde.core.batch import SiteSchema
from sonde.core.errors import InputError
from sonde.core.joining import BUFFER_ROWS, BUFFER_ROWS_WIDE, WIDE
from sonde.core.plan import Plan
from sonde.core.requests import Request
from sonde.run.progress import gib

COMMIT_BYTES = 16 * 2**20
MOST_LEVELS = 6


@dataclass(frozen=True)
class Estimate:
    """What the states, the row buffers and the waiting ranges of one pass take at most.

    Parameters
    ----------
    state_bytes : int
        One full set of states.
    buffer_bytes : int
        Rows that wait for their statistics.
    total_bytes : int
        All of it, over all workers.
    """

    state_bytes: int
    buffer_bytes: int
    total_bytes: int


def state_bytes(wanted: Mapping[str, Request], schema: Sequence[SiteSchema]) -> int:
    """Return the bytes that one full set of states takes."""
    width = {s.key: s.dim for s in schema}
    return sum(r.statistic.size_bytes(*(width.get(k, 1) for k in r.keys)) for r in wanted.values())


def commit_level(wanted: Mapping[str, Request], schema: Sequence[SiteSchema], n_units: int) -> int:
    """Return j: a commit is ``2**j`` units, so that large states are written seldom."""
    size = state_bytes(wanted, schema)
    level = math.ceil(math.log2(max(1.0, size / COMMIT_BYTES)))
    return min(level, MOST_LEVELS, max(0, math.ceil(math.log2(max(1, n_units)))))


def estimate(
    wanted: Mapping[str, Request], schema: Sequence[SiteSchema], plan: Plan, workers: int = 0
) -> Estimate:
    """Return what a pass takes at most."""
    size = state_bytes(wanted, schema)
    width = {s.key: s.dim for s in schema}
    buffers = {r.buffer[:3]: r for r in wanted.values()}
    rows = 0
    for request in buffers.values():
        dim = sum(width.get(k, 1) for k in request.keys)
        rows += 4 * dim * (BUFFER_ROWS if dim <= WIDE else BUFFER_ROWS_WIDE)
    waiting = plan.commit_level + 2
    each = size * (waiting + 1) + rows
    return Estimate(size, rows, each * max(1, workers) + (2 * size if workers else 0))


def free_memory_bytes() -> int:
    """Return the memory that is free now, as the system estimates it."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 * 2**30


def check_memory(needed: Estimate, limit: int | None) -> None:
    """Refuse a pass that would not fit.

    Raises
    ------
    InputError
        With what it takes, what there is, and how to need less.
    """
    allowed = int(0.8 * free_memory_bytes()) if limit is None else limit
    if needed.total_bytes > allowed:
        raise InputError(
            f"this run would take about {gib(needed.total_bytes)} for its states "
            f"({gib(needed.state_bytes)} each set) and {gib(allowed)} are allowed. Read fewer "
            "sites (--sites), fewer methods, fewer workers, or raise --memory."
        )
