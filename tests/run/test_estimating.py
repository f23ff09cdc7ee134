"""What a job is said to cost, before it runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.cli_case import run_words

import sonde
from sonde.core import InputError, Stream
from sonde.run.estimating import jobs
from sonde.run.estimating.jobs import Needs, estimated
from sonde.run.estimating.sampled import amount, sampled
from sonde.run.estimating.trials import growth_of, line_through

ROWS = torch.randn(3000, 6, generator=torch.Generator().manual_seed(0))


class Work:
    """A job of known cost on a clock of its own."""

    def __init__(self, start, each, end, power):
        self.now, self.law = 0.0, (start, each, end, power)
        self.tried = []

    def clock(self):
        return self.now

    def __call__(self, part, folder):
        start, each, end, power = self.law
        n = len(part)
        self.tried.append(n)
        (folder / "file").write_bytes(bytes(100 + 7 * n))
        taken = end * n**power
        self.now += start + each * n + taken
        return taken


@pytest.mark.truth("the law by which the clock of the job moves")
@pytest.mark.parametrize("law", [(3.0, 0.02, 0.5, 0.0), (0.0, 0.5, 1e-4, 2.0), (5.0, 0.0, 0.1, 1)])
def test_a_job_is_extrapolated_by_the_law_of_its_trials(law):
    work, stream = Work(*law), Stream.of(ROWS)
    needs = Needs(1, 1, held=float, n_ranges=8)
    found = estimated("job", stream, work, needs, clock=work.clock)
    start, each, end, power = law
    truth = start + each * 3000 + end * 3000**power
    assert found.seconds == pytest.approx(truth, rel=0.01)
    assert found.low_seconds < truth < found.high_seconds
    assert found.disk_bytes == pytest.approx(100 + 7 * 3000, rel=0.01)
    assert found.worker_seconds[4] == pytest.approx(truth - each * 3000 * 3 / 4, rel=0.01)
    assert max(work.tried) <= 3000 / 8


@pytest.mark.truth("the steps by which the clock of the job moves")
def test_results_are_tried_with_states_of_their_full_size():
    """Two seconds more from 500 examples on, which no sample of at most 375 shows."""
    now = [0.0]

    def work(part, folder):
        end = 0.1 + 2.0 * (len(part) >= 500)
        now[0] += 1e-4 * len(part) + end
        return end

    needs = Needs(1, 1, held=lambda n: float(min(n, 600)))
    estimate = estimated("job", Stream.of(ROWS), work, needs, clock=lambda: now[0])
    assert estimate.seconds == pytest.approx(2.1 + 0.3, rel=0.2)
    assert estimate.n_tried == 512  # units of 256
    closed = []

    def close(part, folder):
        closed.append(len(part))
        read(part, folder)
        began = now[0]
        work(part, folder)
        return now[0] - began

    def read(part, folder):
        now[0] += 1e-4 * len(part)
        return 0.0

    needs = replace(needs, closing=close, closing_name="checks")
    estimate = estimated("job", Stream.of(ROWS), read, needs, clock=lambda: now[0])
    assert estimate.parts["checks"] == pytest.approx(2.1, rel=0.2)
    assert len(closed) == 3  # a warm-up, the largest sample, the full size


@pytest.mark.truth("the law by which the clock of the job moves")
def test_a_machine_that_is_slow_for_a_while_does_not_bend_the_line():
    now, calls = [0.0], [0]

    def work(part, folder):
        calls[0] += 1
        now[0] += (0.01 + 1e-4 * len(part)) * (3.0 if calls[0] <= 16 else 1.0)
        return 0.0

    estimate = estimated("job", Stream.of(ROWS), work, Needs(1, 1), clock=lambda: now[0])
    assert estimate.seconds == pytest.approx(0.31, rel=0.01)


def test_a_line_and_a_power_are_found():
    line = line_through([10, 20, 40], [3.2, 3.4, 3.8])
    assert (line.start, line.rate) == pytest.approx((3.0, 0.02))
    assert line_through([10, 20], [1.0, 2.5]).start == 0  # no job takes less than nothing
    assert growth_of([10, 20, 40], [1.0, 4.0, 16.0], 80) == pytest.approx(4)
    assert growth_of([10, 20, 40], [2.1, 2.2, 2.4], 100) == pytest.approx(3.0 / 2.4)
    assert growth_of([10, 10], [1.0, 2.0], 80) == 1


def test_samples_are_streams_of_their_own():
    rows = Stream.of(ROWS, label=torch.arange(3000) % 3)
    part = sampled(rows, 600)
    assert len(part) == sum(len(batch) for batch in part) == amount(part) == 512
    assert len(sampled(rows, 40)) == 40
    live = sonde.read(
        torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU()),
        (ROWS.numpy(), [i % 2 for i in range(3000)]),
    )
    drawn = sampled(live, 100, seed=3)
    assert len(drawn) == 100
    assert set(drawn.group_keys) <= set(live.group_keys)
    assert set(sampled(live, 100, seed=4).group_keys) != set(drawn.group_keys)


def test_a_fit_names_what_its_methods_cost():
    found = sonde.estimate("fit", Stream.of(ROWS[:400]), methods="covariance,knn", examples=32)
    assert {"covariance", "knn"} < set(found.parts)
    assert found.n_rows == 400
    assert found.n_forwards == 0
    assert found.memory_bytes > 0
    assert found.disk_bytes > found.memory_bytes
    text = str(found)
    assert "400 examples, 400 rows" in text
    assert json.loads(json.dumps(found.document))["schema"] == "sonde-estimate/1"


def test_methods_are_timed_on_rows_that_memory_can_hold(monkeypatch):
    observed: list[int] = []

    def observe(batches, wanted, split=None):
        observed.append(sum(len(batch) for batch in batches))

    monkeypatch.setattr(jobs, "observe_unit", observe)
    monkeypatch.setattr(jobs, "HELD_BYTES", 20 * ROWS.shape[1] * 4)
    sonde.estimate("fit", Stream.of(ROWS[:400]), methods="covariance", examples=16)
    assert observed == [20, 20]


@pytest.mark.slow
@pytest.mark.truth("the bytes of the states that the fit keeps")
def test_a_fit_is_estimated_with_the_rows_that_its_errors_take(tmp_path):
    rows = Stream.of(torch.randn(600, 40, generator=torch.Generator().manual_seed(0)))
    said = sonde.estimate("fit", rows, methods="covariance", calibrate=0, examples=16)
    fitted = sonde.fit("covariance", rows, calibrate=0, progress=False)
    fitted.save(tmp_path / "all.sonde")
    kept = (tmp_path / "all.sonde").stat().st_size
    assert 0.9 * kept < said.memory_bytes < 1.3 * kept


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(InputError, match="job read, fit, score or scan, got 'drift'"):
        sonde.estimate("drift", Stream.of(ROWS))
    with pytest.raises(InputError, match="fitted detectors"):
        sonde.estimate("score", Stream.of(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["read", "fit", "score", "scan"])
def test_commands_estimate_and_write_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = ["sonde:digits", "sonde:digits/test", "--limit", "160"]
    words = {
        "read": ["-o", "acts"],
        "fit": ["-o", "new.sonde"],
        "score": ["-o", "scores.csv"],
        "scan": ["-o", "page.html"],
    }
    before = {"fit": ["mahalanobis"], "score": ["probe.sonde"]}.get(command, [])
    if command == "score":
        first = run_words("fit", "mahalanobis", *source, "-o", "probe.sonde", "--quiet")
        assert first.code == 0
    names = sorted(path.name for path in Path().iterdir())
    ran = run_words(command, *before, *source, *words[command], "--estimate")
    assert ran.code == 0
    for part in ("time here", "peak on disk", "peak memory", "forward passes", "4 workers"):
        assert part in ran.out
    assert sorted(path.name for path in Path().iterdir()) == names
