"""A plan on Ray: the bytes of one process, also when workers are killed, and clear ends.

``SONDE_KILLS=20`` kills workers 20 times instead of 2.
"""

import logging
import os
import random
import signal
import threading
import time
from typing import Any

import pytest
import torch

from ray_case import Broken, Elsewhere, Slow, source, two_cpus
from sonde.core.errors import InputError
from sonde.core.instrument import Every
from sonde.core.plan import Plan
from sonde.core.stream import Stream
from sonde.detect import Mahalanobis, SimpleNet
from sonde.engine.requests import Request
from sonde.measure import ParticipationRatio
from sonde.run.fitting.fit import fit
from sonde.run.passes import _ray
from sonde.run.passes.crew import Crew
from sonde.run.passes.driver import Interrupted, run_pass
from sonde.stats import Moments

ray = pytest.importorskip("ray")
KILLS = int(os.environ.get("SONDE_KILLS", "2"))
QUIET: dict[str, Any] = {"progress": False}
METHODS = [Mahalanobis(), ParticipationRatio()]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with two_cpus():
        yield


def saved(path, stream, **options):
    """Return the bytes of a bundle."""
    options = {"threads": 1, "unit_size": 16, **QUIET, **options}
    fit(METHODS, stream, **options).save(path)
    return path.read_bytes()


class Killer(threading.Thread):
    """Kills processes that left their ids in a folder, at random moments."""

    def __init__(self, place, n, seed):
        super().__init__(daemon=True)
        self.place, self.n, self.killed = place, n, set()
        self.rng, self.over = random.Random(seed), threading.Event()

    def run(self):
        while len(self.killed) < self.n and not self.over.wait(self.rng.uniform(0.05, 1.0)):
            alive = {int(p.stem) for p in self.place.glob("*.pid")} - self.killed
            if alive:
                victim = self.rng.choice(sorted(alive))
                os.kill(victim, signal.SIGKILL)
                self.killed.add(victim)


@pytest.mark.truth("the bytes of one undisturbed process")
def test_workers_killed_at_random_moments_change_no_byte(tmp_path, caplog):
    expected = saved(tmp_path / "alone.sonde", source())
    killed = 0
    for turn in range(10 * KILLS):
        if killed >= KILLS:
            break
        place = tmp_path / f"pids{turn}"
        place.mkdir()
        killer = Killer(place, min(_ray.MOST_DEATHS - 1, KILLS - killed), seed=turn)
        killer.start()
        name = f"{turn}.sonde"
        options = {"runner": "ray", "workers": 2, "directory": tmp_path / f"{turn}.run"}
        found = saved(tmp_path / name, Slow(source(), place, 0.15), **options)
        killer.over.set()
        killer.join()
        killed += len(killer.killed)
        assert found == expected, (turn, killer.killed)
    assert killed >= KILLS
    assert caplog.text.count("was lost; its") >= KILLS // 2


@pytest.mark.truth("the bytes of one process")
def test_a_directory_that_is_not_shared_gets_the_files_over_the_wire(tmp_path, monkeypatch):
    """Workers of another machine do not see the token; here they look for one of another name."""
    expected = saved(tmp_path / "alone.sonde", source())
    real = _ray._packed

    def other_name(ray, job):
        return real(ray, type(job)(**{**vars(job), "token": "not here"}))

    monkeypatch.setattr(_ray, "_packed", other_name)
    ray = {"runner": "ray", "workers": 1}
    assert saved(tmp_path / "r", source(), directory=tmp_path / "r.run", **ray) == expected
    assert saved(tmp_path / "temporary.sonde", source(), **ray) == expected


def test_learners_train_in_the_driver_and_say_so(tmp_path, caplog):
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    ids = [str(i // 4) for i in range(300)]
    stream = Stream.of(x, ids=ids, position=[i % 4 for i in range(300)])
    learners = [SimpleNet(passes=1, steps=1, hidden=4), Mahalanobis()]
    fit(learners, stream, threads=1, **QUIET).save(tmp_path / "alone.sonde")
    with caplog.at_level(logging.WARNING, "sonde"):
        fit(learners, stream, runner="ray", workers=1, **QUIET).save(tmp_path / "ray.sonde")
    assert (tmp_path / "ray.sonde").read_bytes() == (tmp_path / "alone.sonde").read_bytes()
    assert "trained sequentially in this process; workers run the other methods" in caplog.text


@pytest.mark.parametrize(
    ("how", "kind", "match"),
    [
        ("own", ZeroDivisionError, "by the user's model"),
        ("dies", InputError, r"2 workers died at units 2 to 2, the last: .*Committed units are"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told(tmp_path, monkeypatch, how, kind, match):
    """What else can is told as worker processes tell it: tests/run/test_crew.py."""
    monkeypatch.setattr(_ray, "MOST_DEATHS", 2)
    directory = tmp_path / "a.run"
    broken = Broken(source(), how, 32)
    options = {"runner": "ray", "workers": 1, "directory": directory, "threads": 1}
    with pytest.raises(kind, match=match) as told:
        fit(METHODS, broken, unit_size=16, **options, **QUIET)
    if how == "own":
        assert any("in a worker on" in note for note in told.value.__notes__)
    assert list((directory / "states").iterdir())
    assert ray.available_resources().get("CPU", 0) >= 0


def test_a_worker_that_hangs_ends_the_run_with_the_machines_named(tmp_path):
    stream = Broken(source(), "hangs", 32)
    request = Request(Moments(), ("x",), Every(), "all")
    plan = Plan(stream.identity(), (request.id,), tuple(range(0, 641, 16)), threads=1)
    crew = Crew(2, "ray", patience_seconds=12.0)
    with pytest.raises(InputError, match=r"for 12 seconds: units 2 to 2 are being.*: alive, 2 CPU"):
        run_pass(stream, {request.id: request}, plan, crew=crew, directory=tmp_path / "a.run")


def test_a_worker_that_cannot_read_what_the_driver_can_is_told_before_the_start(tmp_path):
    with pytest.raises(InputError, match="first example cannot be read in a worker") as told:
        fit(METHODS, Elsewhere(source(), os.getpid()), runner="ray", workers=1, **QUIET)
    assert "in a worker on" in told.value.__notes__[0]


def test_what_cannot_be_sent_is_named():
    lock: Any = threading.Lock()
    stream = Slow(source(), lock)
    with pytest.raises(InputError, match=r"cannot be sent to other processes.*--workers 0"):
        fit(METHODS, stream, runner="ray", **QUIET)


@pytest.mark.parametrize(("workers", "threads"), [(3, 1), (1, 3), (2, 2)])
def test_more_than_the_cluster_has_is_refused_before_the_start(tmp_path, workers, threads):
    stream = Slow(source(), tmp_path)
    options = {"runner": "ray", "workers": workers, "threads": threads, "unit_size": 16}
    with pytest.raises(InputError, match=r"cannot start: the cluster has 2 CPU and 0 GPU on 1"):
        fit(METHODS, stream, **options, **QUIET)
    assert not list(tmp_path.glob("*.pid"))


def test_a_cluster_that_is_busy_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.run.passes._cluster.SETTLE_SECONDS", 1.0)

    @ray.remote(num_cpus=2)
    class Busy:
        def here(self):
            return True

    busy = Busy.remote()
    assert ray.get(busy.here.remote())
    try:
        with pytest.raises(InputError, match=r"has only 0 CPU and 0 GPU free at the moment. Wait"):
            fit(METHODS, source(), runner="ray", workers=1, **QUIET)
    finally:
        ray.kill(busy)


def test_ctrl_c_keeps_what_is_committed(tmp_path):
    expected = saved(tmp_path / "alone.sonde", source())
    directory, pids = tmp_path / "a.run", tmp_path / "pids"
    pids.mkdir()

    def stop():
        while not list(directory.glob("states/*.sonde")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    options = {"runner": "ray", "workers": 2, "directory": directory}
    with pytest.raises(Interrupted, match=r"interrupted after \d+ of 40 units\. Finished units"):
        saved(tmp_path / "a.sonde", Slow(source(), pids, 0.15), **options)
    assert not list(directory.glob("shared*"))
    assert list(directory.glob("states/*.sonde"))
    assert saved(tmp_path / "a.sonde", source(), directory=directory) == expected
