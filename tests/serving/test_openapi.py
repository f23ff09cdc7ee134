"""The OpenAPI description is true: it has every address, and schemathesis finds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from served_process import running
from serving_case import DIM, net, served
from sonde.serving import app


def client_allows(model):
    with served(model) as client:
        return {*client.options("/feedback").headers["Allow"].split(", ")}


@pytest.mark.truth("the routes of the application")
def test_every_address_is_described_and_every_described_one_is_there():
    model = net()
    with served(model, number_columns=",".join("abcde"[:DIM])) as client:
        found = client.get("/openapi.json").json()
    routes = {
        (route.path, verb.lower())
        for route in app(model).routes
        for verb in route.methods - {"HEAD"}
    }
    assert client_allows(model) == {"GET", "HEAD", "POST"}
    described = {(path, verb) for path, each in found["paths"].items() for verb in each}
    assert described == routes
    item = found["components"]["schemas"]["Inputs"]["properties"]["inputs"]["items"]
    assert item["required"] == list("abcde")[:DIM]
    example = found["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    with served(model, number_columns=",".join("abcde"[:DIM])) as client:
        assert client.post("/predict", json=example["example"]).status_code == 200


@pytest.mark.slow
@pytest.mark.truth("requests that schemathesis generates from the description")
def test_schemathesis_finds_nothing(tmp_path):
    program = str(Path(sys.executable).with_name("schemathesis"))
    if not Path(program).exists():
        pytest.skip("schemathesis is not installed")
    with running("--number-columns", ",".join("abcde"[:DIM])) as server:
        address = f"http://127.0.0.1:{server.port}/openapi.json"
        # What a schema cannot say: which ids and tensors exist, and which codes mean a refusal.
        checks = "positive_data_acceptance,negative_data_rejection"
        words = ["--exclude-checks", checks, "--exclude-path", "/events", "--seed", "1"]
        limits = ["--max-examples", "25", "--continue-on-failure"]
        done = subprocess.run(
            [program, "run", address, *words, *limits],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": "", "NO_COLOR": "1"},
            timeout=400,
        )
        assert server.ask("/v2/health/ready")[0] == 200
    assert done.returncode == 0, done.stdout[-6000:]
