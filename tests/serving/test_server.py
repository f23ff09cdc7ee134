"""The command in a process of its own: sockets, signals, kills, replicas."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving_case import net, probe, rows
from sonde.run.bundles.fitted import Fitted

pytestmark = pytest.mark.slow
TESTS = Path(__file__).resolve().parent.parent
TOKEN = "0123456789abcdef0123456789abcdef"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A running ``sonde serve``."""

    def __init__(self, process, port, token=None):
        self.process, self.port, self.token = process, port, token

    def ask(self, path, body=None, token=None, timeout=30):
        headers = {"Content-Type": "application/json"}
        if token or self.token:
            headers["Authorization"] = f"Bearer {token or self.token}"
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@contextmanager
def running(*arguments, token=None):
    port = free_port()
    command = [sys.executable, "-m", "sonde", "serve", "serving_case:net", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server, until = Server(process, port, token), time.monotonic() + 100
    try:
        while True:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < until, "not ready in time"
            try:
                if server.ask("/v2/health/ready")[0] == 200:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def probe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "probe.sonde"
    model = net()
    probe(model).save(path)
    return path


def body_of(n, seed):
    return {"inputs": [x.tolist() for x in rows(n, seed)]}


@pytest.mark.truth("the number of answers given")
def test_kill_restart_and_term(probe_file, tmp_path):
    log = tmp_path / "traffic"
    options = (probe_file, "--log", log, "--commit", 0.5)
    with running(*options) as server:
        for seed in range(3):
            code, found = server.ask("/predict", body_of(20, seed))
            assert code == 200
            assert len(found["answers"]) == 20
        time.sleep(2.0)
        server.ask("/predict", body_of(7, 9))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    (path,) = log.rglob("*.sonde")
    assert Fitted.load(path).header["data"]["n_examples"] in (60, 67)
    with running(*options) as server:
        n_before = Fitted.load(path).header["data"]["n_examples"]
        assert server.ask("/predict", body_of(11, 4))[0] == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    (path,) = log.rglob("*.sonde")
    found = Fitted.load(path)
    assert found.header["data"]["n_examples"] == n_before + 11
    assert [s["end"] for s in found.header["traffic"]["spans"]] == ["killed", "stopped"]


def test_slow_and_large_bodies_and_tokens(probe_file, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with running(probe_file, "--token-file", token, token=TOKEN) as server:
        assert server.ask("/predict", body_of(1, 0), token="wrong" * 5)[0] == 401
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            head = (
                "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Authorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n{{"
            )
            slow.sendall(head.encode())
            began = time.monotonic()
            assert server.ask("/predict", body_of(2, 1))[0] == 200, "others are served meanwhile"
            slow.settimeout(30)
            answer = slow.recv(4096).decode()
            assert re.match(r"HTTP/1.1 408 ", answer), answer
            assert time.monotonic() - began < 25
        with socket.create_connection(("127.0.0.1", server.port)) as large:
            large.sendall(head.replace("1000", "99999999999").encode())
            large.settimeout(30)
            assert "413" in large.recv(4096).decode().splitlines()[0]


def test_a_calibration_is_taken_without_a_restart(probe_file, tmp_path):
    import sonde

    other = tmp_path / "calibrated.sonde"
    model = net()
    fitted = Fitted.load(probe_file)
    with running(probe_file, "--calibrate", other) as server:
        before = server.ask("/predict", body_of(5, 3))[1]["answers"]
        shifted = rows(300, 8, shift=3.0)
        sonde.calibrate(fitted, model, shifted, progress=False).save(tmp_path / "new")
        (tmp_path / "new").rename(other)
        until = time.monotonic() + 30
        while True:
            after = server.ask("/predict", body_of(5, 3))[1]["answers"]
            if [a["p"] for a in after] != [a["p"] for a in before]:
                break
            assert time.monotonic() < until
            time.sleep(0.2)
        assert [a["score"] for a in after] == [a["score"] for a in before]
        other.write_bytes(b"no state file")
        time.sleep(2.5)
        assert server.ask("/predict", body_of(5, 3))[1]["answers"][0]["p"] == after[0]["p"]


def test_replicas_share_the_port_and_write_files_of_their_own(probe_file, tmp_path):
    log = tmp_path / "traffic"
    with running(probe_file, "--replicas", 2, "--log", log, "--commit", 0.5) as server:
        for seed in range(30):
            code, found = server.ask("/predict", body_of(2, seed))
            while code == 503:
                time.sleep(0.2)
                code, found = server.ask("/predict", body_of(2, seed))
            assert (code, len(found["answers"])) == (200, 2)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    counts = [Fitted.load(path).header["data"]["n_examples"] for path in log.rglob("*.sonde")]
    assert sum(counts) == 60


def test_wrong_starts_are_one_sentence(probe_file, tmp_path):
    def failed(*arguments):
        command = [sys.executable, "-m", "sonde", "serve", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    open_host = failed("serving_case:net", probe_file, "--host", "0.0.0.0")
    assert open_host.returncode == 2
    assert "--token-file" in open_host.stderr
    missing = failed("serving_case:net", tmp_path / "none.sonde")
    assert missing.returncode == 2
    assert "there is no file" in missing.stderr
