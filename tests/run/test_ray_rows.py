"""Rows, scores and scans by workers: what one process writes, finds and says."""

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch

import sonde
from ray_case import Slow, source, two_cpus
from sonde.cli.main import main
from sonde.detect import KNN, Mahalanobis
from sonde.findings.settings import ScanSettings
from sonde.run.passes.storing import filled_by
from sonde.run.workers.crew import Crew
from sonde.run.workers.parts import spans_of
from sonde.store import KeptRows, add_sites, append_store, write_store

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
def digits():
    """A model with a fit on few rows, in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = sonde.load("sonde:digits")
    stream = sonde.read(model, "sonde:digits/train", limit=300)
    yield model, stream, sonde.fit([Mahalanobis(), KNN(k=5)], stream, threads=1, **QUIET)
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


@pytest.mark.truth("the files of one process")
def test_a_store_grows_on_ray_into_the_same_files(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 20_000)
    model = digits[0]

    def stream(data, sites, reducer="patches"):
        return KeptRows(sonde.read(model, data, sites=sites, reducer=reducer, limit=64), 4)

    for name, crew in (("alone", Crew()), ("ray", Crew(2, "ray"))):
        fill = filled_by(crew, 1)
        test, train = "sonde:digits/test", "sonde:digits/train"
        columns = {"n": list(range(64))}
        place = write_store(
            stream(test, "vit.layers.0"), tmp_path / name, unit_size=16, columns=columns, fill=fill
        )
        append_store(stream(train, "vit.layers.0"), place, columns=columns, fill=fill)
        assert add_sites(stream(test, "blocks"), place, fill=fill)
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    assert len([n for n in contents(tmp_path / "ray") if n.startswith("data/1/ranges/")]) > 1


@pytest.mark.truth("the table of one process")
@pytest.mark.parametrize("explain", [0, 2])
def test_scores_by_workers_are_the_table_of_one_process(digits, explain):
    model, _, fitted = digits
    how = {"limit": 530, "explain": explain, **QUIET}
    alone = sonde.score(fitted, model, "sonde:digits/test", **how)
    apart = sonde.score(fitted, model, "sonde:digits/test", runner="ray", workers=2, **how)
    assert apart.equals(alone)
    assert alone.num_rows == 530 * len(fitted)


@pytest.mark.truth("the bundle of one process")
def test_scores_that_calibrate_are_those_of_one_process(digits, tmp_path):
    model, _, fitted = digits
    crews: dict[str, dict[str, Any]] = {"alone": {}, "ray": {"runner": "ray", "workers": 2}}
    for name, crew in crews.items():
        found = sonde.calibrate(fitted, model, "sonde:digits/test", limit=530, **crew, **QUIET)
        found.save(tmp_path / name)
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize(("n", "workers"), [(1, 1), (5, 0), (9, 2), (200, 3)])
def test_every_unit_is_in_one_range(n, workers):
    spans = spans_of(n, workers)
    assert [u for a, b in spans for u in range(a, b)] == list(range(n))
    assert max(b - a for a, b in spans) <= 8


@pytest.mark.truth("the report of one process")
def test_a_scan_on_ray_finds_what_one_process_finds(digits):
    model = digits[0]
    found = [
        sonde.scan(
            model,
            "sonde:digits/test",
            "sonde:digits/train",
            settings=ScanSettings(threads=1, unit_size=64, progress=False, **how),
            limit=128,
        ).json()
        for how in ({}, {"runner": "ray", "workers": 2})
    ]
    for name in ("findings", "checks"):
        assert found[0][name] == found[1][name]
    assert found[0]["findings"]


def test_the_command_line_takes_the_runner(tmp_path, capsys):
    words = [
        "mahalanobis",
        "sonde:digits",
        "sonde:digits/train",
        "--limit",
        "300",
        "--threads",
        "1",
    ]
    for name, more in {"alone": [], "ray": ["--runner", "ray", "--workers", "2"]}.items():
        assert (
            main(["fit", *words, "--threads", "1", *more, "-o", str(tmp_path / f"{name}.sonde")])
            == 0
        )
    assert (tmp_path / "ray.sonde").read_bytes() == (tmp_path / "alone.sonde").read_bytes()
    probe, there = str(tmp_path / "ray.sonde"), ["--address", "nowhere"]
    words = ["score", probe, "sonde:digits", "sonde:digits/test"]
    assert main([*words, *there]) == 2
    assert "expected --runner ray beside it" in capsys.readouterr().err
    assert main([*words, "--runner", "ray", "--workers", "64", "--limit", "16800"]) == 2
    assert "the cluster has 2 CPU" in capsys.readouterr().err
