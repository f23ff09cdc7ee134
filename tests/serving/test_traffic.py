"""Traffic: counts equal the answers, files merge and drift, a kill loses little and is told."""

import json
import subprocess
import sys
import time

import pytest
import torch

import sonde
from kill_case import Killed, killed_at
from serving_case import asked, net, probe, rows, served
from sonde.core.batch import Batch
from sonde.run.fitting.fitted import Fitted
from sonde.serving.replica_folder import ReplicaFolder
from sonde.serving.traffic import Schedule, Traffic, describe


@pytest.fixture(scope="module")
def model():
    return net()


@pytest.fixture(scope="module")
def fitted(model):
    return probe(model)


def one_file(folder):
    (path,) = folder.rglob("*.sonde")
    return path


@pytest.mark.slow
@pytest.mark.truth("sonde.fit on the same rows; the number of answers")
def test_committed_traffic_is_that_of_a_fit_and_drifts(model, fitted, tmp_path):
    monday, tuesday = rows(90, 20), rows(70, 21, shift=1.5)
    for name, items in (("monday", monday), ("tuesday", tuesday)):
        with served(model, fitted, log=tmp_path / name) as client:
            for first in range(0, len(items), 25):
                asked(client, items[first : first + 25])
    first, second = (Fitted.load(one_file(tmp_path / n)) for n in ("monday", "tuesday"))
    wanted = sonde.fit("covariance", sonde.read(model, monday, sites=["1", "2"]), progress=False)
    for site in ("1:out", "2:out"):
        mine, its = (f.result("covariance", site) for f in (first, wanted))
        assert mine.n == its.n == 90
        torch.testing.assert_close(mine.mean, its.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(mine.covariance, its.covariance, rtol=1e-5, atol=1e-7)
    assert first.header["data"]["n_examples"] == 90
    (span,) = first.header["traffic"]["spans"]
    assert (span["inputs"], span["end"]) == (90, "stopped")
    both = sonde.merge(first, second)
    assert both.header["data"]["n_examples"] == 160
    assert [s["inputs"] for s in both.header["traffic"]["spans"]] == [90, 70]
    again = tmp_path / "both.sonde"
    both.save(again)
    assert Fitted.load(again).result("covariance", "1:out").n == 160
    found = sonde.drift(first, second, progress=False)
    assert found.moved()
    with pytest.raises(sonde.StateError, match="same part of the data"):
        sonde.merge(first, both)


def batch_of(n, start, seed):
    """A batch as the server makes it, of rows that nobody else has."""
    generator = torch.Generator().manual_seed(seed)
    keys = [f"{start + i}".encode().ljust(16, b".") for i in range(n)]
    order, zero = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    sites = ("1:out", "2:out")
    return Batch(
        rows={site: torch.randn(n, 7, generator=generator) for site in sites},
        ids=[key.hex() for key in keys],
        keys=keys,
        order=order,
        occurrence=zero,
        example=dict.fromkeys(sites, order),
        position=dict.fromkeys(sites, zero),
        group_keys=keys,
        label=zero - 1,
    )


def test_a_restart_goes_on_with_the_file_and_tells_of_the_kill(model, tmp_path):
    stream = sonde.read(model, rows(2, 0), sites=["1", "2"])
    schedule = Schedule(commit_seconds=3.0)
    killed = Traffic(ReplicaFolder(tmp_path), stream, schedule)
    killed.add(batch_of(300, 0, 1))
    assert killed.commit()
    assert not killed.commit(), "nothing new"
    killed.add(batch_of(40, 300, 2))
    killed._own.close()  # the process ends without a commit
    after = Traffic(ReplicaFolder(tmp_path), stream, schedule)
    assert after.path == killed.path
    after.add(batch_of(25, 340, 3))
    after.close()
    found = Fitted.load(one_file(tmp_path))
    assert found.header["data"]["n_examples"] == 325
    assert found.result("covariance", "2:out").n == 325
    assert [(s["inputs"], s["end"]) for s in found.header["traffic"]["spans"]] == [
        (300, "killed"),
        (25, "stopped"),
    ]
    assert "up to 3 s of traffic after this time are missing" in describe(found.header)


@pytest.mark.truth("the number of inputs")
@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, -3.0])
def test_a_clock_that_jumps_loses_and_repeats_nothing(model, tmp_path, monkeypatch, jump):
    stream, true = sonde.read(model, rows(2, 0), sites=["1", "2"]), time.time
    traffic = Traffic(ReplicaFolder(tmp_path), stream, Schedule())
    traffic.add(batch_of(30, 0, 1))
    assert traffic.commit()
    monkeypatch.setattr(time, "time", lambda: true() + jump)
    traffic.add(batch_of(20, 30, 2))
    assert traffic.commit()
    traffic.close()
    again = Traffic(ReplicaFolder(tmp_path), stream, Schedule())
    again.add(batch_of(7, 50, 3))
    again.close()
    monkeypatch.undo()
    last = Traffic(ReplicaFolder(tmp_path), stream, Schedule())
    last.add(batch_of(5, 57, 4))
    last.close()
    found = [Fitted.load(path) for path in sorted(tmp_path.rglob("*.sonde"))]
    merged = found[0] if len(found) == 1 else sonde.merge(*found)
    assert merged.result("covariance", "2:out").n == 62
    assert sum(span["inputs"] for span in merged.header["traffic"]["spans"]) == 62
    assert "62 inputs" in describe(merged.header)


def test_two_servers_on_one_folder_write_files_of_their_own(model, tmp_path):
    stream = sonde.read(model, rows(2, 0), sites=["1", "2"])
    both = [Traffic(ReplicaFolder(tmp_path), stream, Schedule()) for _ in range(2)]
    for number, one in enumerate(both):
        one.add(batch_of(30, 1000 * number, number))
    for one in both:
        one.close()
    paths = sorted(tmp_path.rglob("*.sonde"))
    assert [path.parent.name for path in paths] == ["0", "1"]
    merged = sonde.merge(*map(Fitted.load, paths))
    assert merged.header["data"]["n_examples"] == 60


def test_a_period_ends_after_its_inputs(model, tmp_path):
    stream = sonde.read(model, rows(2, 0), sites=["1", "2"])
    traffic = Traffic(ReplicaFolder(tmp_path), stream, Schedule(period_inputs=50))
    for number in range(4):
        traffic.add(batch_of(25, 25 * number, number))
    traffic.close()
    counts = [Fitted.load(p).header["data"]["n_examples"] for p in tmp_path.rglob("*.sonde")]
    assert counts == [50, 50]


def test_a_full_disk_keeps_the_traffic_in_memory(model, tmp_path, monkeypatch):
    from sonde.files import durable

    stream = sonde.read(model, rows(2, 0), sites=["1", "2"])
    traffic = Traffic(ReplicaFolder(tmp_path), stream, Schedule())
    traffic.add(batch_of(30, 0, 0))

    def full(descriptor, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        assert not traffic.commit()
    assert traffic.commit()
    traffic.close()
    assert Fitted.load(one_file(tmp_path)).header["data"]["n_examples"] == 30


@pytest.mark.slow
@pytest.mark.truth("the inputs of the commits that were finished")
def test_a_kill_inside_a_commit_leaves_one_whole_file(model, tmp_path):
    stream = sonde.read(model, rows(2, 0), sites=["1", "2"])
    n, is_killed, kept = 0, True, []
    while is_killed:
        n += 1
        traffic = Traffic(ReplicaFolder(tmp_path / f"{n}"), stream, Schedule())
        traffic.add(batch_of(30, 0, 1))
        assert traffic.commit()
        traffic.add(batch_of(20, 30, 2))
        with killed_at(n):
            try:
                traffic.commit()
                is_killed = False
            except Killed:
                pass
        traffic._own.close()  # the system lets go of the lock of a process that is gone
        kept.append(Fitted.load(one_file(tmp_path / f"{n}")).header["data"]["n_examples"])
        after = Traffic(ReplicaFolder(tmp_path / f"{n}"), stream, Schedule())
        after.add(batch_of(7, 50, 3))
        after.close()
        found = Fitted.load(one_file(tmp_path / f"{n}"))
        assert found.header["data"]["n_examples"] == kept[-1] + 7
        assert found.result("covariance", "2:out").n == kept[-1] + 7
        assert sum(span["inputs"] for span in found.header["traffic"]["spans"]) == kept[-1] + 7
    assert n > 4
    assert kept == sorted(kept)
    assert {*kept} == {30, 50}


@pytest.mark.slow
def test_info_and_drift_read_the_files(model, fitted, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        with served(model, fitted, log=tmp_path / name) as client:
            asked(client, rows(60, seed))
    paths = [str(one_file(tmp_path / name)) for name in ("a", "b")]
    command = [sys.executable, "-m", "sonde"]
    info = subprocess.run([*command, "info", paths[0], "--json"], capture_output=True, text=True)
    assert json.loads(info.stdout)["data"]["n_examples"] == 60
    drift = subprocess.run([*command, "drift", *paths], capture_output=True, text=True)
    assert drift.returncode == 0, drift.stderr
    out = tmp_path / "both.sonde"
    merge = subprocess.run([*command, "merge", *paths, "-o", str(out)], capture_output=True)
    assert merge.returncode == 0
    assert Fitted.load(out).header["data"]["n_examples"] == 120
