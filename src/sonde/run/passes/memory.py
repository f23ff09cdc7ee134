"""Estimate the memory of a pass before it starts, and choose the size of its commits."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sonde.core.batch import SiteSchema
from sonde.core.errors import InputError
from sonde.core.plan import Plan
from sonde.core.statistic import Statistic
from sonde.core.stream import Stream
from sonde.core.wording import gib
from sonde.engine.derived import innermost
from sonde.engine.passes import rows_at_once
from sonde.engine.requests import Request
from sonde.files.machine import in_meminfo, whole_memory_bytes
from sonde.tap import LiveStream
from sonde.tap.streams.forward_memory import forward_bytes

COMMIT_BYTES = 16 * 2**20
COMMITS_MERGED = 4
"""Commits of one process that wait until they are merged."""
MOST_LEVELS = 6
WORTH_SAYING = 2**30
MERGING = 2
"""States of the largest statistic beside its operands while two are merged: sum and correction."""
SOLVING = 4
"""The same while a result is taken: a matrix, its eigenvectors and what the solver needs."""
SLACK, BASE = 1.15, 32 * 2**20
"""Memory that allocators leave unused, and memory that every pass needs."""
COPIES = 3
"""Copies of waiting rows: as read, joined, and centred."""
FEW = 8
"""Made-up rows in the state that is measured."""


@dataclass(frozen=True)
class Estimate:
    """Upper bounds of what one pass takes in memory and on disk.

    Parameters
    ----------
    state_bytes : int
        One full set of states.
    buffer_bytes : int
        Rows that wait for their statistics.
    total_bytes : int
        Peak memory of states, buffers and forward passes over all workers, with the results that
        are taken at the end.
    largest : str
        The statistic that takes most, and its sites.
    largest_bytes : int
        What one state of it takes.
    forward_bytes : int
        Tensors of one forward pass of the largest batch, in each process.
    disk_bytes : int
        Peak of the run directory and of the file that is saved from it.
    """

    state_bytes: int
    buffer_bytes: int
    total_bytes: int
    largest: str = ""
    largest_bytes: int = 0
    forward_bytes: int = 0
    disk_bytes: int = 0

    def __str__(self) -> str:
        return (
            f"memory: states {gib(self.state_bytes)}, buffered rows {gib(self.buffer_bytes)}, "
            f"a forward pass {gib(self.forward_bytes)}, {gib(self.total_bytes)} at most; "
            f"on disk {gib(self.disk_bytes)} at most"
        )


def sizes(wanted: Mapping[str, Request], schema: Sequence[SiteSchema]) -> dict[str, int]:
    """Return the largest size in bytes of each request's state."""
    width = {s.key: s.dim for s in schema}
    alike: dict[tuple[str, tuple[int, ...]], int] = {}
    size_of: dict[str, int] = {}
    for i, request in wanted.items():
        dims = tuple(width.get(k, 1) for k in request.keys)
        like = request.digest, dims
        if like not in alike:
            alike[like] = request.statistic.size_bytes(*dims)
        size_of[i] = alike[like]
    return size_of


def state_bytes(wanted: Mapping[str, Request], schema: Sequence[SiteSchema]) -> int:
    """Return the bytes of one set of states at their largest size."""
    return sum(sizes(wanted, schema).values())


def commit_level(wanted: Mapping[str, Request], schema: Sequence[SiteSchema], n_units: int) -> int:
    """Return ``j`` so that a commit is ``2**j`` units; larger states are written less often."""
    size = state_bytes(wanted, schema)
    level = math.ceil(math.log2(max(1.0, size / COMMIT_BYTES)))
    return min(level, MOST_LEVELS, max(0, math.ceil(math.log2(max(1, n_units)))))


def rows_of_an_example(stream: Stream) -> dict[str, float]:
    """Return the rows per example at each site, or their mean in the first batch if they vary."""
    rows = dict.fromkeys((s.key for s in stream.schema), 1.0)
    varying = [s.key for s in stream.schema if not s.reducer.one_row]
    if varying and len(stream):
        first = stream.first_batch()
        rows |= {key: len(first.example[key]) / len(first) for key in varying}
    return rows


def estimate(
    wanted: Mapping[str, Request], stream: Stream, plan: Plan, workers: int = 0
) -> Estimate:
    """Return the peak memory of a pass.

    While rows are read, one set of states waits for each level of the tree of merges and one grows;
    at the end the states of two ranges are merged, and results are taken of the whole.
    Workers merge what they commit. One unit alone is never merged. States that hold rows, and
    buffers of waiting rows, take no more than the rows that exist. Each process runs forward passes
    while its states grow.
    """
    per = rows_of_an_example(stream)
    in_unit = max((stop - start for start, stop in pairwise(plan.bounds)), default=0)
    each = state_sizes(wanted, stream.schema, {k: n * plan.n_examples for k, n in per.items()})
    size = sum(each.values())
    largest = max(each, key=lambda i: each[i], default="")
    most = each.get(largest, 0)
    rows = _waiting_rows(wanted, stream.schema, {k: n * in_unit for k, n in per.items()})
    merging, forward = plan.n_units > 1, forward_bytes_of(stream)
    reading = size * (plan.commit_level + 1) + merging * MERGING * most + COPIES * rows + forward
    folding = merging * (3 * size + MERGING * most)
    taking = 2 * size + SOLVING * most
    at_end = max(folding, taking)
    total = max(reading, folding) * workers + at_end if workers else max(reading, at_end)
    total = round(SLACK * total) + BASE * (workers + 1)
    where = wanted[largest] if largest else None
    name = "" if where is None else f"{type(where.statistic).__name__} at {' & '.join(where.keys)}"
    disk = size * (_waiting_commits(len(plan.commits())) + 1)
    return Estimate(size, COPIES * rows, total, name, most, forward, disk)


def _waiting_commits(n_commits: int) -> int:
    """Return how many committed files lie in the run directory at most, a merged one included."""
    if n_commits <= 1:
        return n_commits
    beyond = max(0, math.ceil(math.log2(n_commits / COMMITS_MERGED)))
    return min(n_commits, COMMITS_MERGED + beyond) + 1


_FORWARDS: WeakKeyDictionary[LiveStream, int] = WeakKeyDictionary()


def forward_bytes_of(stream: Stream) -> int:
    """Return the peak bytes of a forward pass of the largest batch; 0 if rows are stored."""
    live = innermost(stream)
    if not isinstance(live, LiveStream):
        return 0
    if live not in _FORWARDS:
        _FORWARDS[live] = forward_bytes(live)
    return _FORWARDS[live]


def state_sizes(
    wanted: Mapping[str, Request], schema: Sequence[SiteSchema], n_rows: Mapping[str, float]
) -> dict[str, int]:
    """Return the bytes of each state after ``n_rows``, or its fixed size if it holds no rows.

    The size of a state that holds rows is extrapolated along a line from a few made-up rows.
    """
    width = {s.key: s.dim for s in schema}
    line = cache(_line)
    size_of = sizes(wanted, schema)
    for i, request in wanted.items():
        if not request.statistic.holds_rows or request.keys[0] not in n_rows:
            continue
        few, slope = line(request.statistic, *(width.get(k, 1) for k in request.keys))
        beyond = max(0.0, n_rows[request.keys[0]] / FEW - 1)
        size_of[i] = min(size_of[i], math.ceil(few + beyond * slope)) if slope else size_of[i]
    return size_of


def _line(statistic: Statistic[Any], *dims: int) -> tuple[int, int]:
    """Return a state's bytes after a few artificial rows, and its growth; 0 if unknown."""
    try:
        few, more = (statistic.made_up_bytes(n, *dims) for n in (FEW, 2 * FEW))
    except InputError:  # it reads columns whose entries mean more, as the sides of pairs
        return 0, 0
    return few, more - few


def _waiting_rows(
    wanted: Mapping[str, Request], schema: Sequence[SiteSchema], n_rows: Mapping[str, float]
) -> int:
    width = {s.key: s.dim for s in schema}
    buffers = {r.buffer[:3]: r for r in wanted.values()}
    rows = 0
    for request in buffers.values():
        dim = sum(width.get(k, 1) for k in request.keys)
        n = min(rows_at_once(dim, exact=True), n_rows.get(request.keys[0], math.inf))
        rows += math.ceil(4 * dim * n)
    return rows


def free_memory_bytes() -> int:
    """Return the free memory: the smaller of the system's and the container limit's."""
    return min(in_meminfo("MemAvailable", 8 * 2**30), _free_in_group())


def _free_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes left below a container's limit; inactive cached files count as free."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return 2**60 if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return 2**60


def check_limit(limit: int | None) -> None:
    """Raise if a memory limit is not positive, or above the memory of this machine.

    Raises
    ------
    InputError
        With the memory that the machine has.
    """
    whole = whole_memory_bytes()
    if limit is not None and not 0 < limit <= whole:
        raise InputError(
            f"--memory: expected more than 0 and at most the {gib(whole)} of this machine, got "
            f"{gib(limit)}."
        )


def allowed_bytes(limit: int | None) -> int:
    """Return the bytes that a run may use: the given limit, or 80 % of the free memory.

    Raises
    ------
    InputError
        If the limit is 0 or less, or more than this machine has.
    """
    check_limit(limit)
    return int(0.8 * free_memory_bytes()) if limit is None else limit


def check_memory(needed: Estimate, limit: int | None, say: bool = False) -> None:
    """Raise if a pass does not fit in memory; with ``say``, print the needs of a large pass.

    Raises
    ------
    InputError
        With what it takes, what is allowed, and how to need less; or if the limit is invalid.
    """
    allowed = allowed_bytes(limit)
    if needed.total_bytes > allowed:
        raise InputError(
            f"this run needs about {gib(needed.total_bytes)} ({gib(needed.state_bytes)} for one "
            f"set of states, {gib(needed.largest_bytes)} of it for {needed.largest}, "
            f"{gib(needed.forward_bytes)} for a forward pass), but {gib(allowed)} are allowed. "
            "Read fewer sites (--sites), take methods that need less memory at wide sites, such as "
            "mahalanobis(scatter='diag') or covariance(scatter='diag'), use a smaller --batch-size "
            "or fewer workers, or raise --memory."
        )
    if say and needed.total_bytes >= WORTH_SAYING:
        sys.stderr.write(f"{needed}.\n")
