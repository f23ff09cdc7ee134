"""Who works: what contradicts itself or cannot be had is refused before anything starts."""

import os
import pickle
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import torch

from cli_case import run_words
from ray_case import Broken, Deadly, source
from run_case import rows
from sonde.core.errors import InputError, MachineError
from sonde.core.stream import Stream
from sonde.detect import Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.passes import _processes
from sonde.run.passes._actors import WorkerFailure, unpacked
from sonde.run.passes._cluster import ActorNeeds, _require_reachable, check_room
from sonde.run.passes.crew import Crew
from sonde.run.passes.job import Job, can_read


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"workers": -1}, "--workers: expected 0 or more, got -1"),
        ({"address": "head:6379"}, "--address: expected --runner ray, because only Ray"),
    ],
)
def test_what_contradicts_itself_is_refused(options, match):
    with pytest.raises(InputError, match=match):
        Crew(**options)


def test_threads_are_one_for_workers_unless_asked():
    assert Crew(2).threads() == Crew(0, "ray").threads() == 1
    assert Crew(2).threads(3) == 3


@pytest.mark.slow
def test_without_ray_the_error_says_how_to_install_it():
    """In a fresh process that cannot import it; nothing else of sonde needs it."""
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "import sonde\n"
        "from sonde.core.stream import Stream\n"
        "from sonde.detect import Mahalanobis\n"
        "import torch\n"
        "stream = Stream.of(torch.randn(50, 2))\n"
        "sonde.fit(Mahalanobis(), stream, progress=False)\n"
        "try: sonde.fit(Mahalanobis(), stream, runner='ray', progress=False)\n"
        "except sonde.InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "which cannot be imported (import of ray halted" in done.stdout
    assert "pip install 'sonde-torch[ray]" in done.stdout


@pytest.mark.slow
def test_sonde_does_not_import_ray():
    program = "import sys, sonde.run.fitting.fit, sonde.cli.commands; print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.truth("counted by hand")
@pytest.mark.parametrize(
    ("nodes", "needs", "room"),
    [
        ([{"CPU": 4.0}], ActorNeeds(1), 4),
        ([{"CPU": 4.0}, {"CPU": 3.0}], ActorNeeds(2), 3),
        ([{"CPU": 1.0}, {"CPU": 1.0}], ActorNeeds(2), 0),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], ActorNeeds(1, 1), 2),
        ([{"CPU": 8.0, "GPU": 3.0}], ActorNeeds(1, 2), 1),
        ([{}], ActorNeeds(1), 0),
        ([], ActorNeeds(1), 0),
    ],
)
def test_room_is_counted_machine_by_machine(nodes, needs, room):
    if room:
        check_room(nodes, needs, room)
        check_room(nodes, needs, 0)
    with pytest.raises(InputError, match=rf"cannot start: .*, enough for {room}\."):
        check_room(nodes, needs, room + 1)


def test_no_machine_with_the_device_is_named():
    with pytest.raises(
        InputError, match=r"needs 1 CPU and 1 GPU each .*no machine of the cluster has a GPU"
    ):
        check_room([{"CPU": 8.0}], ActorNeeds(1, 1), 0)


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("ray://head:10001", r"expected host:port of a cluster's head, or auto, got 'ray://"),
        ("head", "expected host:port or auto, got 'head'"),
        ("127.0.0.1:99999", "nothing answers at 127.0.0.1:99999"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(address, match):
    with pytest.raises(InputError, match=match):
        _require_reachable(address)


def test_nothing_at_an_address_is_refused_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=rf"nothing answers at 127.0.0.1:{port}"):
        _require_reachable(f"127.0.0.1:{port}")


@pytest.mark.slow
def test_something_else_at_an_address_is_refused(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr("sonde.run.passes._cluster.HEALTH_SECONDS", 2.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"no Ray cluster answers at {address}"):
            fit(Mahalanobis(), source(), runner="ray", address=address, progress=False)


def test_an_exception_that_cannot_be_copied_still_reaches_the_user():
    class Local(Exception):
        pass

    error = WorkerFailure.of(Local("of no module")).error()
    assert isinstance(error, InputError)
    assert "failed: Local: of no module." in str(error)


def test_every_stream_says_whether_its_first_example_is_here():
    assert can_read(Stream.of(rows(4)))


WORKER = rf"{socket.gethostname()} \(process \d+\)"


@pytest.mark.slow
@pytest.mark.truth("RLIMIT_AS of the operating system")
@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("memory", rf"memory ran out in a worker on {WORKER}: .*1073741824 bytes.*--batch-size"),
        ("dies", rf"died .* \(process \d+ on {socket.gethostname()}: exit code 137\).*--workers"),
        ("files", r"lacks a file or module: FileNotFoundError: .*weights\.safetensors"),
    ],
)
def test_what_a_process_lacks_is_said(monkeypatch, how, match):
    monkeypatch.setattr(_processes, "MOST_DEATHS", 2)
    broken = Broken(source(), how, 32)
    with pytest.raises(MachineError, match=match):
        fit(Mahalanobis(), broken, unit_size=32, workers=1, progress=False)


@pytest.mark.slow
@pytest.mark.truth("the bytes of one process")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_killed_worker_had_begun_is_counted_once(tmp_path):
    options = {"unit_size": 16, "threads": 1, "progress": False}
    fit(Mahalanobis(), source(), **options).save(tmp_path / "alone.sonde")
    deadly = Deadly(source(), tmp_path / "mark", 32)
    fit(Mahalanobis(), deadly, workers=1, **options).save(tmp_path / "killed.sonde")
    assert deadly.mark.exists()
    assert (tmp_path / "killed.sonde").read_bytes() == (tmp_path / "alone.sonde").read_bytes()


def test_a_job_on_plain_arrays_needs_no_device():
    class Nothing(Job):
        def work(self, start, stop):
            return None

    assert Nothing(source(), 1).devices() == []


@pytest.mark.truth("where torch puts tensors of a named device")
def test_tensors_are_unpacked_on_the_devices_of_the_worker():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    packed = pickle.dumps((net, torch.device("cuda", 1), torch.device("cpu")))
    moved, device, stays = unpacked(memoryview(packed), {"cpu": "meta", "cuda:1": "cuda:0"})
    assert {p.device.type for p in moved.parameters()} == {"meta"}
    assert (str(device), str(stays)) == ("cuda:0", "meta")
    kept, *devices = unpacked(memoryview(packed), {})
    assert all(torch.equal(x, net.state_dict()[n]) for n, x in kept.state_dict().items())
    assert devices == [torch.device("cuda", 1), torch.device("cpu")]


def test_memory_is_counted_for_the_workers_of_this_machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Crew(3).workers_here == Crew(3, "ray").workers_here == 3
    assert Crew(300, "ray", "head:6379").workers_here == 1
    assert Crew(0, "ray").workers_here == 1
    assert Crew().workers_here == 0


FIT = ("fit", "mahalanobis", "-", "x.npz", "--threads", "1", "-o")


def _wait_for(address, seconds=120):
    host, port = address.split(":")
    until = time.monotonic() + seconds
    while True:
        with socket.socket() as line:
            if line.connect_ex((host, int(port))) == 0:
                return
        assert time.monotonic() < until
        time.sleep(0.2)


def _fit(path, address, environment):
    """Fit on a cluster in a fresh process, which reads Ray's settings anew."""
    words = [*FIT, path, "--runner", "ray", "--address", address]
    return subprocess.run(
        [sys.executable, "-m", "sonde", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
@pytest.mark.truth("the bytes of one process")
def test_a_running_cluster_is_found_by_its_address(tmp_path, monkeypatch):
    """Its head asks for a token, as Ray does by default: one made up here for both sides."""
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=rows(300).numpy())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    words = f"start --head --block --port {address[10:]} --num-cpus 1 --include-dashboard false"
    words += " --disable-usage-stats --object-store-memory 104857600"
    right, wrong = (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} for _ in range(2)
    )
    place = tempfile.mkdtemp(prefix="sonde-head-")
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words.split(), "--temp-dir", place],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **right},
    )
    try:
        _wait_for(address)
        done = _fit("ray.sonde", address, right)
        refused = _fit("no.sonde", address, wrong)
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(place, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert refused.returncode == 2
    assert "asks for a token. Set RAY_AUTH_MODE=token," in refused.stderr
    assert run_words(*FIT, "alone.sonde").code == 0
    assert (tmp_path / "ray.sonde").read_bytes() == (tmp_path / "alone.sonde").read_bytes()
