"""The table of laws of cost, on methods whose time follows a planted law."""

from types import SimpleNamespace

import pytest
from benchmarks.cost_laws import Subject

from benchmarks import cost_laws
from sonde.detect import MMD, Mahalanobis
from sonde.measure import DCI


class Planted:
    """A method.

    Cost         O(dim^2 + rows) by its word.
    Assumes      nothing.
    """


class Clock:
    """Processor time that only the planted methods spend."""

    now, calls = 0.0, 0

    def process_time(self):
        return self.now

    def spend(self, seconds):
        self.calls += 1
        if seconds > cost_laws.LIMIT_SECONDS:
            raise cost_laws.OverLimit
        self.now += seconds


@pytest.mark.truth("the law by which the clock moves")
def test_exponents_above_the_documented_ones_are_named(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cost_laws, "time", SimpleNamespace(process_time=clock.process_time))

    def subject(name, power_of_units, power_of_rows, first=1.0):
        def prepare(units, rows):
            seconds = first * (units / 256) ** power_of_units * (rows / 1024) ** power_of_rows
            return lambda: clock.spend(seconds)

        return Subject(name, "measure", Planted, prepare)

    chosen = [subject("Honest", 2, 1), subject("Cubic", 2, 3, 0.1), subject("Slow", 4, 0)]
    path = tmp_path / "cells.jsonl"
    sizes = cost_laws.axes()
    cost_laws.run(path, chosen, 30.0, sizes)
    n = clock.calls
    cost_laws.run(path, chosen, 30.0, sizes)  # goes on where it stopped
    assert clock.calls == n
    lines = cost_laws.table(path, chosen, sizes)
    assert "| measure.Honest | 1 | 16 | 4 | 2.0 | 2 | 1.0 | 1 |" in lines
    assert "| measure.Slow | 1 | over 30 s | 1 | 4.0 | 2 | 0.0 | 1 |" in lines
    above = lines[lines.index("Above the documented exponent:") + 1 : -2]
    assert above == [
        "`measure.Cubic`: 3.0 in rows, documented 1",
        "`measure.Slow`: 4.0 in units, documented 2",
    ]


@pytest.mark.slow
def test_powers_are_read_from_docstrings():
    assert cost_laws.documented(Mahalanobis) == (3, 1)
    assert cost_laws.documented(MMD) == (1, 2)
    assert cost_laws.documented(DCI) == (3, 1)  # dim^2 dim2
    paths = [one.path for one in cost_laws.subjects()]
    assert len(paths) == len(set(paths)) > 120
