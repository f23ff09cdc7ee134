"""Forms of inputs: several arrays, whole numbers of JSON, tensors of the inference protocol."""

import json
import time

import pytest
import torch
from starlette.testclient import TestClient
from torch import nn

import sonde
from serving_case import DIM, asked, net, probe, served
from sonde.serving import app


class Joined(nn.Module):
    """Reads token ids and a vector."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.numbers = nn.Embedding(9, 4), nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids, x):
        return self.head(self.tokens(ids).mean(1) + self.numbers(x))


def pairs(n, seed):
    g = torch.Generator().manual_seed(seed)
    ids, x = torch.randint(0, 9, (n, 2), generator=g), torch.randn(n, 3, generator=g)
    return [{"ids": a, "x": b} for a, b in zip(ids, x, strict=True)]


@pytest.fixture(scope="module")
def joined():
    model = Joined().eval()
    stream = sonde.read(model, pairs(40, 0), sites=["tokens", "numbers"])
    fitted = sonde.fit("mahalanobis", stream, calibrate=0, progress=False)
    return model, sonde.calibrate(fitted, model, pairs(50, 1), progress=False)


@pytest.mark.slow
@pytest.mark.truth("sonde.score of the same rows")
def test_several_inputs_by_name(joined):
    model, fitted = joined
    items = pairs(6, 2)
    lines = sonde.score(fitted, model, items, batch_invariant=True).to_pylist()
    wanted = sorted((line["site"], line["score"]) for line in lines)
    body = {"inputs": [{name: x.tolist() for name, x in item.items()} for item in items]}
    tensors = [
        {"name": name, "datatype": kind, "shape": [6, n], "data": _flat(items, name)}
        for name, kind, n in (("x", "FP32", 3), ("ids", "INT64", 2))
    ]
    with served(model, fitted, batch_invariant=True) as client:
        lacking = client.post("/predict", json={"inputs": [{"x": [0.5, 1.0, 2.0]}]})
        assert lacking.status_code == 400
        found = client.post("/predict", json=body).json()["answers"]
        got = [one["score"]["mahalanobis"].items() for one in found]
        assert sorted(each for one in got for each in one) == wanted
        described = client.get("/v2/models/Joined").json()["inputs"]
        assert {one["name"]: one["datatype"] for one in described} == {"ids": "INT64", "x": "FP32"}
        inferred = client.post("/v2/models/Joined/infer", json={"inputs": tensors}).json()
        outputs = {one["name"]: one["data"] for one in inferred["outputs"]}
        assert outputs["p_all"] == [one["p_all"] for one in found]
        for wrong in (tensors[:1], [tensors[0], {**tensors[1], "name": "x"}], [tensors[0], 3]):
            refused = client.post("/v2/models/Joined/infer", json={"inputs": wrong})
            assert refused.status_code == 400, wrong


def _flat(items, name):
    return [value for item in items for value in item[name].tolist()]


@pytest.mark.truth("the answer to the same numbers as floats")
@pytest.mark.parametrize("first", [[1, 2, 3, 4, 5], [1.5, 2, 3, 4, 5]])
def test_json_has_one_kind_of_number(first):
    with served(net()) as client:
        assert client.post("/predict", json={"inputs": [first]}).status_code == 200
        (wanted,) = asked(client, [torch.tensor([1.0, 0.0, 2.0, -3.0, 4.0])])
        found = client.post("/predict", json={"inputs": [[1, 0, 2, -3, 4]]}).json()["answers"]
    assert found[0]["probability"] == wanted["probability"]


@pytest.mark.truth("sonde.score of the same rows in double precision")
def test_a_model_in_double_precision_gets_all_digits():
    model = net().double()
    generator = torch.Generator().manual_seed(0)
    fit, held, items = (
        list(torch.randn(n, DIM, dtype=torch.float64, generator=generator)) for n in (60, 60, 4)
    )
    fitted = sonde.fit("mahalanobis", sonde.read(model, fit, sites="1"), calibrate=0)
    fitted = sonde.calibrate(fitted, model, held, progress=False)
    table = sonde.score(fitted, model, items, batch_invariant=True, progress=False)
    with served(model, fitted, batch_invariant=True) as client:
        found = [one["score"]["mahalanobis"]["1:out"] for one in asked(client, items)]
    assert sorted(found) == sorted(table["score"].to_pylist())


def test_whole_numbers_stay_whole_for_a_model_of_tokens(joined):
    model, fitted = joined
    with served(model, fitted) as client:
        whole = client.post("/predict", json={"inputs": [{"ids": [3, 2], "x": [0, 1, 2]}]})
        assert whole.status_code == 200, whole.text
        broken = client.post("/predict", json={"inputs": [{"ids": [0.5, 2], "x": [0, 1, 2]}]})
        assert broken.status_code == 400


TENSOR = {"name": "inputs", "datatype": "FP32", "shape": [1, DIM], "data": [0.5] * DIM}
WRONG = {
    "an object as type": {"datatype": {}},
    "halves as whole numbers": {"datatype": "INT64"},
    "300 as a byte": {"datatype": "UINT8", "data": [300] * DIM},
    "infinity as a whole number": {"datatype": "INT32", "data": [float("inf")] * DIM},
    "a shape whose product has 30,000 digits": {"shape": [1, *[10**4000] * 7]},
}


def inferred(client, body):
    """What a client gets that writes half letters as escapes, and infinity as 1e999."""
    content = json.dumps(body).replace("Infinity", "1e999")
    headers = {"Content-Type": "application/json"}
    return client.post("/v2/models/Sequential/infer", content=content, headers=headers)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_tensors_that_contradict_themselves(wrong):
    with served(net()) as client:
        found = inferred(client, {"inputs": [{**TENSOR, **wrong}]})
        assert found.status_code == 400, found.text
        assert found.json()["error"].endswith(".")


def test_an_id_that_is_half_a_letter_is_not_repeated():
    with served(net()) as client:
        for name, repeated in (("id é", True), ("\ud800", False), ("x" * 129, False)):
            body = {"id": name, "inputs": [TENSOR]}
            found = inferred(client, body)
            assert found.status_code == 200, found.text
            assert (found.json()["id"] == name) == repeated


@pytest.mark.parametrize("change", ["weights", "modules", "type"])
def test_a_probe_of_another_model_is_refused_before_any_input(change):
    model, other = net(), net()
    if change == "weights":
        with torch.no_grad():
            next(other.parameters()).mul_(1.01)
    elif change == "modules":
        other[1] = nn.LeakyReLU()
    else:
        other = other.double()
    with TestClient(app(other, probe(model, 60))) as client:
        until = time.monotonic() + 20
        while "error" not in (said := client.get("/v2/health/ready").json()):
            assert time.monotonic() < until, said
            assert not said["ready"]
            time.sleep(0.02)
        assert client.post("/predict", json={"inputs": [[0.5] * DIM]}).status_code == 503
