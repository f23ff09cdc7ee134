"""The examples run: in FastAPI, in LitServe, on Ray Serve; and the files of operators parse."""

import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from starlette.testclient import TestClient

from serving_case import asked, net, probe, rows, wait_until_ready
from sonde.serving import app
from sonde.serving.figures import Figures

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "serving"
TESTS = Path(__file__).resolve().parents[1]


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Below:
    """A client of an application that is mounted."""

    def __init__(self, client, prefix):
        self.client, self.prefix = client, prefix

    def get(self, path):
        return self.client.get(self.prefix + path)

    def post(self, path, **options):
        return self.client.post(self.prefix + path, **options)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """A probe's file, and what the application itself answers."""
    path = tmp_path_factory.mktemp("probe") / "probe.sonde"
    model = net()
    probe(model).save(path)
    with TestClient(app(model, path)) as client:
        wait_until_ready(client)
        return path, [a["p"] for a in asked(client, rows(6, 1))]


@pytest.mark.slow
@pytest.mark.truth("the application without a framework around it")
def test_mounted_in_fastapi(wanted, monkeypatch):
    path, p_values = wanted
    monkeypatch.setenv("MODEL", "serving_case:net")
    monkeypatch.setenv("PROBE", str(path))
    with TestClient(example("in_fastapi").service) as client:
        below = Below(client, "/model")
        wait_until_ready(below)
        assert [a["p"] for a in asked(below, rows(6, 1))] == p_values
        assert client.get("/hello").json()["predict"] == "/model/predict"
        assert below.get("/").status_code == 200
    monkeypatch.setenv("TOKEN", "0123456789abcdef")
    with TestClient(example("in_fastapi").service) as client:
        assert client.get("/model/v2/health/live").status_code == 200
        assert client.get("/model/metrics").status_code == 401


@pytest.mark.slow
@pytest.mark.truth("the application without a framework around it")
def test_mounted_in_litserve(wanted):
    path, p_values = wanted
    port = free_port()
    environment = {
        **os.environ,
        "MODEL": "serving_case:net",
        "PROBE": str(path),
        "PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "in_litserve.py")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            until = time.monotonic() + 90
            while True:
                assert process.poll() is None
                assert time.monotonic() < until
                try:
                    if client.get("/model/v2/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            assert client.post("/predict", json={"numbers": [1, 2, 3]}).json() == {"total": 6}
            below = Below(client, "/model")
            assert [a["p"] for a in asked(below, rows(6, 1))] == p_values
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.truth("the application without a framework around it")
@pytest.mark.filterwarnings("default")
def test_replicas_on_ray(wanted, monkeypatch):
    import ray
    from ray import serve

    from sonde.serving.replicas import READY_CHECK, deployment
    from sonde.serving.running import Settings

    path, p_values = wanted
    monkeypatch.syspath_prepend(str(EXAMPLES))  # replicas import the example by its name
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    monkeypatch.setenv("MODEL", "serving_case:net")
    monkeypatch.setenv("PROBE", str(path))
    monkeypatch.setenv(READY_CHECK, "20")  # as ``run_on_ray``: the machine may be busy
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    port = 20_000 + os.getpid() % 20_000
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = Settings("serving_case:net", str(path), replicas=2)
        small = {"ray_actor_options": {"num_cpus": 0.5}}
        serve.run(deployment(settings, **small), name="sonde", route_prefix="/")
        own = importlib.import_module("on_ray")
        serve.run(own.replicas, name="own", route_prefix="/own")
        for prefix in ("", "/own"):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}{prefix}") as client:
                body = {"inputs": [x.tolist() for x in rows(6, 1)]}
                for _ in range(5):
                    until = time.monotonic() + 60
                    while (found := client.post("/predict", json=body)).status_code == 503:
                        assert time.monotonic() < until
                        time.sleep(0.2)
                    assert found.status_code == 200, found.text
                    assert [a["p"] for a in found.json()["answers"]] == p_values
    finally:
        serve.shutdown()
        ray.shutdown()


def known_metrics():
    text = Figures().text()
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def test_grafana_asks_for_metrics_that_exist():
    board = json.loads((EXAMPLES / "grafana.json").read_text())
    asked_for = " ".join(t["expr"] for panel in board["panels"] for t in panel["targets"])
    names = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"sonde_\w+", asked_for)
    }
    assert len(names) >= 8
    assert names <= known_metrics()


def test_alerts_ask_for_metrics_that_exist():
    (group,) = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())["groups"]
    asked_for = " ".join(rule["expr"] for rule in group["rules"])
    names = set(re.findall(r"sonde_\w+", asked_for))
    assert len(names) >= 8
    assert {name.removesuffix("_total") for name in names} <= {
        name.removesuffix("_total") for name in known_metrics()
    }
    assert all(rule["annotations"]["summary"] for rule in group["rules"])


def words_of(arguments):
    from sonde.cli.serve import Serve

    fields = {name.replace("_", "-") for name in Serve.__dataclass_fields__}
    flags = {word.lstrip("-").partition("=")[0] for word in arguments if word.startswith("--")}
    return flags, fields


def test_compose_and_kubernetes_name_flags_and_addresses_that_exist():
    paths = {getattr(route, "path", "") for route in app(net()).routes}
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    command = compose["services"]["model"]["command"][2]
    words = shlex.split(command.partition("exec ")[2])
    assert words[:2] == ["sonde", "serve"]
    flags, fields = words_of(words)
    assert flags <= fields
    scrape = yaml.safe_load(compose["configs"]["scrape"]["content"])["scrape_configs"][0]
    assert scrape["metrics_path"] in paths
    check = " ".join(compose["services"]["model"]["healthcheck"]["test"])
    assert any(path and path in check for path in paths - {"/"})
    deployment, service = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    flags, fields = words_of(container["args"])
    assert flags <= fields
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"]["path"] in paths
    port = container["ports"][0]["containerPort"]
    assert service["spec"]["ports"][0]["targetPort"] == port == 8000
