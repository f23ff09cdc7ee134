"""The command in a process of its own: sockets, signals, kills, replicas."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from served_process import TESTS, body_of, running
from serving_case import net, probe, rows
from sonde.run.fitting.fitted import Fitted

pytestmark = pytest.mark.slow
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def probe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "probe.sonde"
    model = net()
    probe(model).save(path)
    return path


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


@pytest.mark.truth("the answers that clients got")
def test_a_stopping_server_answers_what_it_took_and_counts_it(probe_file, tmp_path):
    log, given, wrong = tmp_path / "traffic", [], []
    with running(probe_file, "--log", log, "--commit", 1000) as server:

        def client(number):
            with suppress(OSError, http.client.HTTPException):  # no server any more
                while True:
                    code, found = server.ask("/predict", body_of(3, number))
                    if code == 503:  # it stops
                        return
                    given.append(len(found["answers"]) if code == 200 else wrong.append(code))

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(client, number) for number in range(8)]
            while len(given) < 40:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            assert all(one.result(30) is None for one in asking)
    assert wrong == []
    (path,) = log.rglob("*.sonde")
    assert Fitted.load(path).header["data"]["n_examples"] == sum(given)


@pytest.mark.truth("the answers given before the server died between two file operations")
def test_death_inside_a_commit_keeps_the_commit_before(probe_file, tmp_path):
    log, options = tmp_path / "traffic", (probe_file, "--log", tmp_path / "traffic")
    n_answered = 0
    # a commit is 17 file operations and 6 for the changes: the server dies in the second
    with running(*options, "--commit", 0.2, SONDE_FAULT="34") as server:
        until = time.monotonic() + 60
        while server.process.poll() is None:
            assert time.monotonic() < until, "the server lives on"
            with suppress(OSError, http.client.HTTPException):
                code, found = server.ask("/predict", body_of(3, n_answered))
                assert (code, len(found["answers"])) == (200, 3)
                n_answered += 3
        assert server.process.returncode == 137
    (path,) = log.rglob("*.sonde")
    n_before = Fitted.load(path).header["data"]["n_examples"]
    assert 0 < n_before <= n_answered + 3
    with running(*options) as server:
        assert server.ask("/predict", body_of(5, 1))[0] == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    (path,) = log.rglob("*.sonde")
    found = Fitted.load(path)
    assert found.header["data"]["n_examples"] == n_before + 5
    assert [s["end"] for s in found.header["traffic"]["spans"]] == ["killed", "stopped"]


@pytest.mark.truth("the number of rows asked about")
def test_open_telemetry_by_its_variables(probe_file):
    pytest.importorskip("opentelemetry.sdk")
    variables = {"OTEL_METRICS_EXPORTER": "console", "OTEL_METRIC_EXPORT_INTERVAL": "600000"}
    with running(probe_file, **variables) as server:
        for seed in range(3):
            assert server.ask("/predict", body_of(4, seed))[0] == 200
        server.process.send_signal(signal.SIGTERM)
        text, _ = server.process.communicate(timeout=60)
    decoder, values = json.JSONDecoder(), {}
    found, _ = decoder.raw_decode(text[text.index("{") :])
    for scope in found["resource_metrics"][0]["scope_metrics"]:
        for metric in scope["metrics"]:
            points = metric["data"]["data_points"]
            values[metric["name"]] = sum(p.get("value", p.get("count")) for p in points)
    n_detectors = 4
    assert values["sonde.rows"] == 12 * n_detectors
    assert values["sonde.p_value"] == 12 * n_detectors
    assert values["sonde.forwards"] == 3


def test_slow_and_large_bodies_and_tokens(probe_file, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with running(probe_file, "--token-file", token, token=TOKEN) as server:
        assert server.ask("/predict", body_of(1, 0), token="wrong" * 5)[0] == 401
        idle = http.client.HTTPConnection("127.0.0.1", server.port)
        idle.request("GET", "/v2/health/live")
        assert idle.getresponse().read()
        with (
            socket.create_connection(("127.0.0.1", server.port)) as slow,
            socket.create_connection(("127.0.0.1", server.port)) as endless,
            socket.create_connection(("127.0.0.1", server.port)) as silent,
        ):
            endless.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n")
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
            for other in (endless, silent):
                other.settimeout(30)
                assert other.recv(4096).startswith(b"HTTP/1.1 408 ")
                assert other.recv(1) == b""
            assert time.monotonic() - began < 25
        connection = idle.sock
        idle.request("GET", "/v2/health/live")
        assert idle.getresponse().read(), "a connection that was idle for 10 s is still open"
        assert idle.sock is connection
        idle.close()
        with socket.create_connection(("127.0.0.1", server.port)) as large:
            large.sendall(head.replace("1000", "99999999999").encode())
            large.settimeout(30)
            assert "413" in large.recv(4096).decode().splitlines()[0]


def test_connections_beyond_the_limit_are_refused():
    with running("--connections", 4) as server:
        address = ("127.0.0.1", server.port)
        with ExitStack() as stack:
            time.sleep(0.2)  # what asked whether the server is ready has gone
            for _ in range(4):
                stack.enter_context(socket.create_connection(address))
            time.sleep(0.2)
            more = stack.enter_context(socket.create_connection(address))
            assert more.recv(4096).startswith(b"HTTP/1.1 503 ")
        time.sleep(0.2)
        assert server.ask("/predict", body_of(2, 0))[0] == 200


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


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("./no_such_folder", "no directory ./no_such_folder"),
        ("serving_case:unloadable", "the factory has no file of weights"),
    ],
)
def test_a_server_whose_model_cannot_be_loaded_ends(model, said, tmp_path):
    command = [sys.executable, "-m", "sonde", "serve", model, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=90, cwd=tmp_path
    )
    assert done.returncode == 2
    assert said in done.stderr
