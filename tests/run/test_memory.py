"""What a pass is said to take before it starts, against what it takes."""

import json
import subprocess
import sys

import pytest
import torch

import sonde
from sonde import detect, measure
from sonde.core import InputError, Stream
from sonde.core.instrument import WIDEST_FULL, Instrument
from sonde.core.state import size_bytes
from sonde.core.statistic import Learner
from sonde.detect import Mahalanobis, RelativeMahalanobis
from sonde.engine.requests import Task, requests
from sonde.files.machine import whole_memory_bytes
from sonde.measure import Covariance
from sonde.run.fitting import fit as fitting
from sonde.run.fitting.fit import fit
from sonde.run.passes.memory import (
    Estimate,
    _free_in_group,
    check_memory,
    estimate,
    forward_bytes_of,
)
from sonde.stats import ClassMoments, Coreset, CrossMoments, Moments, Quantiles

GIB = 2**30
ROWS = torch.randn(3000, 96, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(3000) % 8  # as many classes as an estimate assumes

CHILD = """
import json, sys, torch
torch.set_num_threads(1)
from benchmarks.child import added_peak
from sonde.core import Stream
from sonde.run.fitting import fit as run
from sonde.measure import Covariance
from sonde.detect import Mahalanobis
seen = []
run.check_memory = lambda needed, *_: seen.append(needed.total_bytes)
one = {"covariance": Covariance("full"), "mahalanobis": Mahalanobis(scatter="full")}[sys.argv[1]]
x = torch.randn(2048, 2560, generator=torch.Generator().manual_seed(0))
label = torch.arange(2048) % 5
run.fit(one, Stream.of(x[:300, :8], label=label[:300]), progress=False)
seen.clear()
def work():
    fitted = run.fit(one, Stream.of(x, label=label), calibrate=0, progress=False)
    return fitted, dict(fitted)
print(json.dumps([added_peak(work) * 2**20, seen[0]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["covariance", "mahalanobis"])
@pytest.mark.truth("the largest resident size of a process that fits")
def test_a_run_takes_what_was_said_within_a_fifth(name):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, name], capture_output=True, text=True, check=True
    )
    taken, said = json.loads(done.stdout.splitlines()[-1])
    assert said == pytest.approx(taken, rel=0.2)


def simple_statistics():
    """Return the statistics of all methods that read rows and labels alone, by their text."""
    found = {}
    for package in (detect, measure):
        for name in package.__all__:
            cls = getattr(package, name)
            if isinstance(cls, type) and issubclass(cls, Instrument):
                for example in cls.examples:
                    for read in cls(**example).all_reads().values():
                        needs = set(read.statistic.needs())
                        if needs <= {"x", "label"} and not isinstance(
                            read.statistic, Learner | Coreset | Quantiles
                        ):
                            found[repr(read.statistic)] = read.statistic
    return found


@pytest.mark.truth("the tensors of a state of 3,000 rows, counted")
@pytest.mark.parametrize("statistic", simple_statistics().values(), ids=repr)
def test_a_state_takes_what_its_statistic_says(statistic):
    columns = {"x": ROWS, "label": LABELS}
    state = statistic.observe(*(columns[name] for name in statistic.needs()))
    assert size_bytes(state) == pytest.approx(statistic.size_bytes(96), rel=0.2, abs=512)


def test_quantiles_never_take_more_than_they_say_up_to_a_thousand_k_rows():
    sketch = Quantiles(16)
    running = sketch.observe(ROWS[:10])
    for part in ROWS[10:].split(100) * 5:
        running = sketch.merge(running, sketch.observe(part))
        assert size_bytes(running) <= sketch.size_bytes(96)


def test_wide_rows_are_held_by_their_variances_unless_the_whole_is_asked_for():
    wide = Stream.of(torch.randn(64, WIDEST_FULL + 1), label=torch.arange(64) % 2)
    chosen = [Mahalanobis(), RelativeMahalanobis(), Covariance()]
    fitted = fit(chosen, wide, calibrate=0, progress=False)
    assert {t.instrument for t in fitted.tasks} == {
        Mahalanobis(scatter="diag"),
        RelativeMahalanobis(scatter="diag"),
        Covariance("diag"),
    }
    assert sum(map(size_bytes, fitted.states.values())) < 2 * 2**20
    result = fitted.result("mahalanobis")
    assert result.conventions["covariance"] == "variances alone"
    with pytest.raises(InputError, match=r"ClassMoments at x.*mahalanobis\(scatter='diag'\)"):
        fit(Mahalanobis(scatter="full"), wide, calibrate=0, memory=64 * 2**20, progress=False)
    narrow = fit(Mahalanobis(), Stream.of(ROWS[:, :8]), calibrate=0, progress=False)
    assert narrow.tasks[0].instrument == Mahalanobis()
    assert narrow.result("mahalanobis").conventions["covariance"] == "whole"


@pytest.mark.truth("squared differences over variances, summed")
def test_arrays_as_wide_are_scored_by_their_variances():
    x = torch.randn(50, WIDEST_FULL + 5, generator=torch.Generator().manual_seed(1)).double()
    scorer = Mahalanobis(shrinkage=0.0).fit(x)
    truth = ((x - x.mean(0)).square() / x.var(0, correction=0)).sum(1)
    torch.testing.assert_close(scorer.score(x), truth, rtol=1e-6, atol=1e-6)
    assert Covariance().fit(x).covariance.ndim == 1
    assert Covariance("full").fit(x[:, :300]).covariance.ndim == 2


@pytest.mark.truth("eight bytes for each pair of units, whatever else there is")
@pytest.mark.parametrize("dim", [4096, 16384])
def test_the_cost_of_wide_sites_is_known_without_paying_it(dim):
    for statistic in (Moments(), ClassMoments()):
        assert statistic.size_bytes(dim) == pytest.approx(8 * dim**2, rel=0.01)
    assert CrossMoments().size_bytes(dim, dim // 2) == pytest.approx(4 * dim**2, rel=0.01)
    assert Moments("diag").size_bytes(dim) == 16 * dim


@pytest.mark.parametrize("limit", [-1, 0, 2**70])
def test_an_absurd_limit_is_refused(limit):
    with pytest.raises(InputError, match="--memory: expected more than 0 and at most the"):
        check_memory(Estimate(1, 1, 1), limit)
    assert whole_memory_bytes() > 2**20


def test_what_a_large_run_takes_is_said(capsys):
    check_memory(Estimate(3 * 2**20, 2**20, 10 * 2**20), None, say=True)
    assert capsys.readouterr().err == ""
    large = Estimate(2**29, 2**20, 2**30, forward_bytes=2**21, disk_bytes=2**31)
    check_memory(large, 2**30, say=True)
    assert capsys.readouterr().err == (
        "memory: states 512 MiB, buffered rows 1 MiB, a forward pass 2 MiB, 1.0 GiB at most; "
        "on disk 2.0 GiB at most.\n"
    )


@pytest.mark.truth("the two tensors that live while a linear layer and a ReLU run, counted")
def test_a_forward_pass_takes_its_tensors_that_live_at_once():
    wide = 2**16
    net = torch.nn.Sequential(
        torch.nn.Linear(8, wide), torch.nn.ReLU(), torch.nn.Linear(wide, 8), torch.nn.ReLU()
    )
    stream = sonde.read(net, (torch.zeros(300, 8).numpy(), [0] * 300), "3", batch_size=200)
    small = sonde.read(net, (torch.zeros(300, 8).numpy(), [0] * 300), "3", batch_size=2)
    assert forward_bytes_of(stream) == pytest.approx(2 * 4 * wide * 200, rel=0.01)
    assert forward_bytes_of(small) == 0  # covered by what every pass needs
    said = needs_of(stream).total_bytes - needs_of(small).total_bytes
    assert said >= forward_bytes_of(stream)
    with pytest.raises(InputError, match=r"100 MiB for a forward pass.*--batch-size"):
        fit(Covariance(), stream, calibrate=0, memory=2**26, progress=False)


def needs_of(stream):
    """Return what a fit of variances is said to take."""
    wanted = requests([Task(Covariance("diag"), (stream.schema[0].key,))])
    return estimate(wanted, stream, fitting.make_plan(stream, wanted, None, 256, None))


def test_a_container_may_leave_less(tmp_path):
    assert _free_in_group(tmp_path) == 2**60
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 50\n")
    assert _free_in_group(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert _free_in_group(tmp_path) == 2**60


@pytest.mark.parametrize("word", ["knn", "patch_core", "covariance", "mahalanobis", "unit_entropy"])
@pytest.mark.truth("the tensors of the states that were fitted, counted")
def test_few_rows_take_what_they_are(monkeypatch, word):
    said = []
    monkeypatch.setattr(fitting, "check_memory", lambda needed, *_: said.append(needed))
    x = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    fitted = fit(word, Stream.of(x, label=torch.arange(40) % 8), calibrate=0, progress=False)
    taken = sum(size_bytes(state) for state in fitted.states.values() if state is not None)
    assert taken <= 1.02 * sum(needed.state_bytes for needed in said) <= 1.6 * taken
    assert said[0].buffer_bytes <= 3 * 4 * 48 * 40 * 3


@pytest.mark.slow
def test_a_few_rows_at_very_many_sites_fit():
    x = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    many = Stream.of({f"layers.{i}": x for i in range(300)})
    fitted = fit("knn", many, memory=128 * 2**20, progress=False)
    assert len(fitted) == 300
