"""What users get wrong at scale: one line, exit 2, and what was committed is kept."""

import os
import socket
import sys

import numpy as np
import pytest

from file_limit import files_up_to
from sonde.files.lock import RunLock
from sonde.files.state_file import read_header

NETS = """
import os, signal, torch
from torch import nn

class Hungry(nn.Module):
    '''Asks for more memory than there is, or dies, where a row says so.'''

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        if (x > 500).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (x > 100).any():
            torch.empty(1 << 50)
        return self.layer(x)

def make():
    torch.manual_seed(0)
    return Hungry().eval()

def other():
    torch.manual_seed(1)
    return Hungry().eval()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and data that end well, or ask for too much at the 90th row."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype("f4")
    np.savez(tmp_path / "x.npz", x=x)
    for name, value in (("hungry", 200), ("deadly", 900)):
        bad = x.copy()
        bad[90] = value
        np.savez(tmp_path / f"{name}.npz", x=bad)
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


FIT = "covariance nets:make {} --sites layer --unit-size 20 --batch-size 20 -o a.sonde"


WORKER = f"in a worker on {socket.gethostname()} (process "


@pytest.mark.slow
@pytest.mark.truth("the allocator of torch and SIGKILL")
@pytest.mark.parametrize(
    ("data", "workers", "said"),
    [
        ("hungry.npz", "0", ["out of memory with 20 examples", "--batch-size 10"]),
        ("hungry.npz", "2", ["out of memory with 20 examples", "--batch-size 10", WORKER]),
        ("deadly.npz", "1", ["a worker process died", "SIGKILL", "committed units are kept"]),
    ],
)
def test_no_memory_ends_in_one_line_and_keeps_what_is_committed(run, here, data, workers, said):
    words = [*FIT.format(data).split(), "--workers", workers, "--quiet"]
    line = run("fit", *words).error()
    assert all(word in line for word in said), line
    assert list((here / "a.run" / "states").glob("*.sonde"))
    assert not (here / "a.sonde").exists()


@pytest.mark.truth("the allocator of numpy")
def test_no_memory_outside_a_forward_is_one_line(run, here, monkeypatch):
    def asks(*_, **__):
        np.empty(1 << 56)

    monkeypatch.setattr("sonde.run.fitting.fit.run_pass", asks)
    line = run("fit", *FIT.format("x.npz").split()).error()
    assert "out of memory: Unable to allocate 512. PiB" in line
    assert "Use a smaller --batch-size" in line


SIZES = ["-1", "-8GiB", "0", "0GiB", "nan", "inf", "lots", "8 apples", "1e30", "900TiB", ""]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("command", ["fit covariance", "scan", "read", "score", "calibrate"])
def test_absurd_memory_is_refused_before_the_work(run, place, tmp_path, command, size, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suffix = {"scan": ".json", "score": ".csv"}.get(command, ".sonde")
    probe = [place / "probe.sonde"] if command in ("score", "calibrate") else []
    words = [*command.split(), *probe, "-", place / "rows.npz"]
    words += ["-o", f"a{suffix}", f"--memory={size}"]
    assert "--memory" in run(*words).error()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fit covariance", "scan"])
def test_without_ray_the_runner_is_refused(run, place, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    suffix = ".json" if command == "scan" else ".sonde"
    words = [*command.split(), "-", place / "rows.npz", "-o", tmp_path / f"a{suffix}"]
    line = run(*words, "--runner", "ray").error()
    assert "pip install 'sonde-torch[ray]" in line
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_model_or_schema_is_refused(run, here):
    for name, model in (("acts", "nets:make"), ("others", "nets:other")):
        assert run("read", model, "x.npz", "--sites", "layer", "-o", name, "--quiet").code == 0
    assert run("read", "nets:make", "x.npz", "--sites", "layer", "--dtype", "bfloat16",
               "-o", "wide", "--quiet").code == 0  # fmt: skip
    assert run("fit", "knn(k=3)", "acts", "-o", "a.sonde", "--quiet").code == 0
    before = sorted(here.iterdir())
    line = run("score", "a.sonde", "others", "-o", "s.csv").error()
    assert "another model" in line
    line = run("score", "a.sonde", "wide", "-o", "s.csv").error()
    assert "another model" in line or "dtype" in line
    assert sorted(here.iterdir()) == before


def test_a_store_that_is_being_written_names_its_writer(run, here):
    assert run("read", "nets:make", "x.npz", "--sites", "layer", "-o", "acts").code == 0
    next((here / "acts" / "ranges").iterdir()).unlink()
    with RunLock(here / "acts"):
        line = run("fit", "knn(k=3)", "acts", "-o", "a.sonde").error()
        assert f"Process {os.getpid()} on" in line
        assert "is writing it: wait for it" in line
        line = run("read", "nets:other", "x.npz", "--sites", "layer", "-o", "acts").error()
        assert f"in use by process {os.getpid()}" in line
    assert not (here / "a.sonde").exists()


@pytest.mark.truth("each row counted once")
def test_duplicate_and_unsorted_ids_count_every_row_once(run, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype("f4")
    ids = rng.permutation(np.repeat(np.arange(30), 2))
    np.savez(tmp_path / "x.npz", x=x, id=ids)
    for data, name in ((["-", tmp_path / "x.npz"], "live"), ([tmp_path / "acts"], "stored")):
        if name == "stored":
            assert run("read", "-", tmp_path / "x.npz", "-o", tmp_path / "acts").code == 0
        ran = run("fit", "covariance", *data, "-o", tmp_path / f"{name}.sonde", "--json")
        assert ran.json()["results"][0]["n"] == 60, ran.err
        assert read_header(tmp_path / f"{name}.sonde")["counters"]["rows|x"] == 60
    assert (tmp_path / "live.sonde").read_bytes() == (tmp_path / "stored.sonde").read_bytes()
    assert run("verify", tmp_path / "acts").code == 0


@pytest.mark.slow
@pytest.mark.truth("RLIMIT_FSIZE of the operating system")
@pytest.mark.parametrize(
    ("words", "output"),
    [
        ("scan - rows.npz -o a.html", "a.html"),
        ("score probe.sonde - rows.npz -o a.parquet", "a.parquet"),
        ("export acts -o a.parquet", "a.parquet"),
        ("drift probe.sonde probe.sonde -o a.html", "a.html"),
    ],
)
def test_a_full_disk_leaves_no_half_of_any_output(run, place, tmp_path, words, output, monkeypatch):
    for name in ("rows.npz", "probe.sonde"):
        (tmp_path / name).symlink_to(place / name)
    assert run("read", "-", place / "rows.npz", "-o", tmp_path / "acts", "--quiet").code == 0
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    with files_up_to(400):
        error = run(*words.split()).error()
    assert "too large" in error or "space" in error
    assert not (tmp_path / output).exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".run") == before
