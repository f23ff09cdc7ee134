"""A full disk: the server goes on, says that commits fail, and commits when there is room."""

import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

from served_process import body_of, running
from serving_case import net, probe
from sonde.run.fitting.fitted import Fitted

SIZE = 8 * 2**20


@contextmanager
def small_disk(path):
    """Mount a file system of a few MiB."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system can be mounted only by root: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path):
    """Write until nothing has room."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                pass


def failed_commits(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = (one for one in lines if one.startswith("sonde_commits_failed_total"))
    return float(line.split()[-1])


def dashboard(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/events", timeout=30) as events:
        while not (line := events.readline()).startswith(b"data: "):
            pass
    return line


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.truth("the inputs asked about; the kernel's own limit of a file system")
def test_a_server_goes_on_with_a_full_disk_and_commits_when_there_is_room(tmp_path):
    probe(net()).save(tmp_path / "p.sonde")
    with small_disk(tmp_path / "disk") as disk:
        options = (tmp_path / "p.sonde", "--log", disk / "log", "--commit", 0.3)
        with running(*options) as server:
            assert server.ask("/predict", body_of(6, 0))[0] == 200
            until(lambda: any((disk / "log" / "0").glob("*.sonde")))
            assert server.ask("/v2/health/ready") == (200, {"ready": True})
            fill(disk / "filler")
            for seed in range(1, 11):
                code, content = server.ask("/predict", body_of(100, seed))
                assert code == 200
            given = content["answers"]
            until(lambda: failed_commits(server) > 0)
            code, content = server.ask("/v2/health/ready")
            assert (code, content["ready"]) == (200, True)
            assert "commit of the traffic failed" in content["warning"]
            assert b'"commits_fail": true' in dashboard(server)
            truth = {"id": given[0]["id"], "truth": given[0]["answer"]}
            assert server.ask("/feedback", truth)[0] == 200
            (disk / "filler").unlink()
            until(lambda: server.ask("/v2/health/ready") == (200, {"ready": True}))
            assert b'"commits_fail": false' in dashboard(server)
            (file,) = (disk / "log" / "0").glob("*.sonde")
            until(lambda: Fitted.load(file).header["data"]["n_examples"] == 1006)
            assert server.ask("/feedback")[1]["all"]["n"] == 1
