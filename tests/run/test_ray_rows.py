"""Rows, scores and scans by workers: what one process writes, finds and says."""

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from ray_case import Slow, source, two_cpus
from run_case import rows
from sonde.cli.main import main
from sonde.detect import KNN, Mahalanobis
from sonde.findings.settings import ScanSettings
from sonde.run.passes.crew import Crew
from sonde.run.passes.parts import spans_of
from sonde.run.passes.storing import filled_by
from sonde.store import write_store

pytest.importorskip("ray")
QUIET: dict[str, Any] = {"progress": False}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with two_cpus():
        yield


@pytest.fixture(scope="module")
def small():
    """A net with rows to scan, and a fit on others, in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = rows(900, 6)
    how = {"threads": 1, **QUIET}
    yield net, x[300:], sonde.fit([Mahalanobis(), KNN(k=5)], sonde.read(net, x[:300]), **how)
    torch.set_num_threads(before)


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.truth("the files of one process, killed nowhere")
def test_rows_written_by_workers_of_which_one_is_killed_are_the_same_files(tmp_path):
    write_store(source(), tmp_path / "alone", unit_size=16)
    pids = tmp_path / "pids"
    pids.mkdir()

    def kill():
        while not list(pids.glob("*.pid")):
            time.sleep(0.02)
        os.kill(int(next(pids.glob("*.pid")).stem), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    slow = Slow(source(), pids, 0.05)
    write_store(slow, tmp_path / "ray", unit_size=16, fill=filled_by(Crew(2, "ray")))
    thread.join(5)
    assert not thread.is_alive()
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")


@pytest.mark.truth("the table of one process")
def test_scores_by_workers_are_the_table_of_one_process(small):
    net, x, fitted = small
    alone = sonde.score(fitted, net, x, explain=2, **QUIET)
    apart = sonde.score(fitted, net, x, explain=2, runner="ray", workers=2, **QUIET)
    assert apart.equals(alone)
    assert alone.num_rows == 600 * len(fitted)


@pytest.mark.truth("the bundle of one process")
def test_scores_that_calibrate_are_those_of_one_process(small, tmp_path):
    net, x, fitted = small
    crews: dict[str, dict[str, Any]] = {"alone": {}, "ray": {"runner": "ray", "workers": 2}}
    for name, crew in crews.items():
        sonde.calibrate(fitted, net, x, **crew, **QUIET).save(tmp_path / name)
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize(("n", "workers"), [(1, 1), (5, 0), (9, 2), (200, 3)])
def test_every_unit_is_in_one_range(n, workers):
    spans = spans_of(n, workers)
    assert [u for a, b in spans for u in range(a, b)] == list(range(n))
    assert max(b - a for a, b in spans) <= 8


@pytest.mark.truth("the report of one process")
def test_a_scan_on_ray_finds_what_one_process_finds(small):
    net, x, _ = small
    found = [
        sonde.scan(
            net,
            x[:128],
            x[128:256] + 9.0,
            settings=ScanSettings(threads=1, unit_size=64, progress=False, **how),
        ).json()
        for how in ({}, {"runner": "ray", "workers": 2})
    ]
    for name in ("findings", "checks"):
        assert found[0][name] == found[1][name]
    assert found[0]["findings"]


def test_the_command_line_takes_the_runner(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=rows(300).numpy())
    words = ["mahalanobis", "-", str(tmp_path / "x.npz"), "--threads", "1"]
    for name, more in {"alone": [], "ray": ["--runner", "ray", "--workers", "2"]}.items():
        assert main(["fit", *words, *more, "-o", str(tmp_path / f"{name}.sonde")]) == 0
    assert (tmp_path / "ray.sonde").read_bytes() == (tmp_path / "alone.sonde").read_bytes()
    probe, there = str(tmp_path / "ray.sonde"), ["--address", "nowhere"]
    words = ["score", probe, "sonde:digits", "sonde:digits/test"]
    assert main([*words, *there]) == 2
    assert "expected --runner ray, because only Ray" in capsys.readouterr().err
    words = ["fit", "mahalanobis", "sonde:digits", "sonde:digits/train", "-o", probe]
    assert main([*words, "--runner", "ray", "--workers", "64"]) == 2
    assert "the cluster has 2 CPU" in capsys.readouterr().err
