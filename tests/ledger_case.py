"""A small fit over plain arrays, cut into eleven units, for the tests of commits and kills."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sonde.core.instrument import Every, Subsample
from sonde.core.plan import Plan
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.engine.array_stream import ArrayStream
from sonde.engine.folding import fold, grow
from sonde.engine.passes import observe_unit
from sonde.engine.requests import Request, States
from sonde.run.passes.ledger import Ledger
from sonde.run.passes.units import add_counters
from sonde.stats import HashSample, Moments

N_UNITS = 11
UNIT = 8


@dataclass(frozen=True)
class Job:
    stream: ArrayStream
    wanted: dict[str, Request]
    plan: Plan
    n_rows: int

    def leaf(self, unit: int) -> tuple[States, dict[str, Any]]:
        return _leaf(self.plan.commit_level, unit)

    def observe(self, unit: int) -> tuple[States, dict[str, Any]]:
        bounds = self.plan.bounds[unit], self.plan.bounds[unit + 1]
        states = observe_unit(self.stream.batches(*bounds), self.wanted)
        n_rows = bounds[1] - bounds[0] - self._bad(*bounds)
        return states, {"rows": {"x": n_rows}, "nonfinite": {"x": self._bad(*bounds)}}

    def _bad(self, start: int, stop: int) -> int:
        return int((~torch.isfinite(self.stream.rows["x"][start:stop]).all(1)).sum())


@cache
def case(level: int) -> Job:
    generator = torch.Generator().manual_seed(7)
    n_rows = N_UNITS * UNIT - 3
    x = torch.randn(n_rows, 3, generator=generator) * 100 + 1e3
    x[[5, 20, 60], 1] = torch.nan
    stream = Stream.of(x)
    listed = [
        Request(Moments(), ("x",), Every(), "all"),
        Request(Moments("diag"), ("x",), Subsample(every=2), "all"),
        Request(HashSample(16), ("x",), Every(), "all"),
    ]
    bounds = (*range(0, n_rows, UNIT), n_rows)
    wanted = {r.id: r for r in listed}
    plan = Plan(stream.identity(), tuple(wanted), bounds, commit_level=level)
    return Job(stream, wanted, plan, n_rows)


@cache
def _leaf(level: int, unit: int) -> tuple[States, dict[str, Any]]:
    return case(level).observe(unit)


def run_units(ledger: Ledger, job: Job) -> None:
    """Do what is missing, range by range, like a runner."""
    for start, stop in ledger.missing():
        tree: list[tuple[int, States]] = []
        counters: dict[str, Any] = {}
        for unit in range(start, stop):
            states, counts = job.leaf(unit)
            tree = grow(job.wanted, tree, (0, states))
            counters = add_counters(counters, counts)
        ledger.put(start, stop, fold(job.wanted, tree), counters)
        ledger.compact()


def in_memory(job: Job) -> tuple[States, dict[str, Any]]:
    tree: list[tuple[int, States]] = []
    counters: dict[str, Any] = {}
    for unit in range(job.plan.n_units):
        states, counts = job.leaf(unit)
        tree = grow(job.wanted, tree, (0, states))
        counters = add_counters(counters, counts)
    return fold(job.wanted, tree), counters


def same(a: States, b: States) -> None:
    assert a.keys() == b.keys()
    assert all(equal(a[name], b[name]) for name in a)
    assert any(state is not None for state in a.values())
