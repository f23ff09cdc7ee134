"""The Open Inference Protocol: requests of the official client, its cases restated, compression."""

import gzip
import json
import struct
import zlib

import numpy as np
import pytest
import torch

from serving_case import asked, net, probe, served
from sonde.serving.binary_tensors import encoded, split_body, with_data
from sonde.serving.refusals import Refusal

PATH = "/v2/models/Sequential/infer"
X = torch.arange(10.0).reshape(2, 5) / 8
# What tritonclient 2.73 sends for X, with one output as bytes and one as JSON; and for two texts.
HEAD = (
    b'{"id":"7","inputs":[{"name":"inputs","shape":[2,5],"datatype":"FP32","parameters":'
    b'{"binary_data_size":40}}],"outputs":[{"name":"answer","parameters":{"binary_data":true}},'
    b'{"name":"alarm","parameters":{"binary_data":false}}]}'
)
CONTENT = X.numpy().tobytes()
TEXTS = (
    b'{"inputs":[{"name":"inputs","shape":[2],"datatype":"BYTES","parameters":'
    b'{"binary_data_size":13}}],"parameters":{"binary_data_output":true}}'
    b"\x03\x00\x00\x00a b\x02\x00\x00\x00\xc3\xbc"
)


@pytest.fixture(scope="module")
def client():
    model = net()
    with served(model, probe(model)) as found:
        # names of inputs are checked once a request has shown them; no test waits for another's
        assert found.post(PATH, json={"inputs": [TENSOR]}).status_code == 200
        yield found


def length(head):
    return {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.truth("a request recorded from the official client; the answers of /predict")
@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_a_request_of_the_official_client(client, version):
    plain = asked(client, X)
    path = PATH.replace("/infer", f"{version}/infer")
    found = client.post(path, content=HEAD + CONTENT, headers=length(HEAD))
    assert found.status_code == 200, found.text
    n = int(found.headers["Inference-Header-Content-Length"])
    head, rest = json.loads(found.content[:n]), found.content[n:]
    answer, alarm = head["outputs"]
    assert (head["id"], answer["name"], alarm["name"]) == ("7", "answer", "alarm")
    assert answer["parameters"]["binary_data_size"] == len(rest)
    texts, at = [], 0
    while at < len(rest):
        (size,) = struct.unpack_from("<I", rest, at)
        texts.append(rest[at + 4 : at + 4 + size].decode())
        at += 4 + size
    assert texts == [one["answer"] for one in plain]
    assert alarm["data"] == [one["alarm"] for one in plain]


def test_texts_and_missing_values_as_bytes():
    head, content = split_body(TEXTS, "139")
    assert with_data(json.loads(head), content)["inputs"][0]["data"] == [b"a b", "ü".encode()]
    assert np.isnan(np.frombuffer(encoded("FP64", [None, 0.5]), "<f8")).tolist() == [True, False]
    assert encoded("BYTES", ["ü", None]) == b"\x02\x00\x00\x00\xc3\xbc\x00\x00\x00\x00"


@pytest.mark.truth("the fields that KServe's protocol requires of each endpoint")
def test_the_endpoints_of_the_protocol_have_its_fields(client):
    def got(path, status=200):
        found = client.get(path)
        assert found.status_code == status, (path, found.text)
        return found.json()

    assert got("/v2/health/live") == {"live": True}
    assert got("/v2/health/ready") == {"ready": True}
    assert got("/v2").keys() >= {"name", "version", "extensions"}
    for version in ("", "/versions/1"):
        metadata = got(f"/v2/models/Sequential{version}")
        assert metadata.keys() >= {"name", "versions", "platform", "inputs", "outputs"}
        for tensor in (*metadata["inputs"], *metadata["outputs"]):
            assert tensor.keys() == {"name", "datatype", "shape"}
        assert got(f"/v2/models/Sequential{version}/ready") == {"ready": True}
    for path in ("/v2/models/other", "/v2/models/Sequential/versions/2"):
        assert got(path, 404).keys() == got(f"{path}/ready", 404).keys() == {"error"}
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [2, 5], "data": X.flatten().tolist()}
    found = client.post(PATH, json={"inputs": [tensor]}).json()
    assert found.keys() >= {"model_name", "model_version", "id", "outputs"}
    assert [one["name"] for one in found["outputs"]] == [one["name"] for one in metadata["outputs"]]
    for one, said in zip(found["outputs"], metadata["outputs"], strict=True):
        assert one.keys() == {"name", "datatype", "shape", "data"}
        assert (one["datatype"], one["shape"]) == (said["datatype"], [2])


TENSOR = {"name": "inputs", "datatype": "FP32", "shape": [2, 5], "data": X.flatten().tolist()}
WRONG = {
    "another name": ({"inputs": [{**TENSOR, "name": "x"}]}, "Expected the tensors 'inputs'"),
    "no name": ({"inputs": [{**TENSOR, "name": 3}]}, "a name that is no text"),
    "two tensors": ({"inputs": [TENSOR, TENSOR]}, "Expected the tensors 'inputs'"),
    "an unknown output": ({"inputs": [TENSOR], "outputs": [{"name": "y"}]}, "outputs among answer"),
    "outputs as texts": ({"inputs": [TENSOR], "outputs": ["answer"]}, "a list of outputs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_names_are_told(client, case):
    body, said = WRONG[case]
    found = client.post(PATH, json=body)
    assert found.status_code == 400
    assert said in found.json()["error"]


@pytest.mark.parametrize(
    ("head", "content", "header"),
    [
        (HEAD, CONTENT[:-1], str(len(HEAD))),
        (HEAD, CONTENT + b"1234", str(len(HEAD))),
        (HEAD, CONTENT, "99999"),
        (HEAD, CONTENT, "-3"),
        (HEAD.replace(b"FP32", b"FP99"), CONTENT, str(len(HEAD))),
        (HEAD.replace(b":40", b":-4"), CONTENT, str(len(HEAD))),
        (HEAD.replace(b"FP32", b"BYTES"), CONTENT, str(len(HEAD) + 1)),
    ],
)
def test_bytes_that_contradict_their_sizes_are_refused(client, head, content, header):
    headers = {"Inference-Header-Content-Length": header}
    found = client.post(PATH, content=head + content, headers=headers)
    assert found.status_code == 400
    assert found.json()["error"].startswith("Expected")


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_compressed_bodies_of_every_kind(client, name):
    pack = gzip.compress if name == "gzip" else zlib.compress
    headers = {"Content-Encoding": name, "Content-Type": "application/json"}
    plain = asked(client, X)
    body = json.dumps({"inputs": X.tolist()}).encode()
    found = client.post("/predict", content=pack(body), headers=headers)
    assert [a["p"] for a in found.json()["answers"]] == [a["p"] for a in plain]
    both = {**headers, **length(HEAD)}
    assert client.post(PATH, content=pack(HEAD + CONTENT), headers=both).status_code == 200
    form = client.build_request("POST", "/predict", files={"a": b"no picture"})
    typed = {"Content-Encoding": name, "Content-Type": form.headers["content-type"]}
    refused = client.post("/predict", content=pack(form.read()), headers=typed)
    assert "Input 0" in refused.json()["error"], "the form was read"
    bomb = client.post("/predict", content=pack(b" " * 2**24), headers=headers)
    assert bomb.status_code == 413
    for broken in (body, pack(body)[:-9], pack(body) + b"more"):
        assert client.post("/predict", content=broken, headers=headers).status_code == 400
    other = client.post("/predict", content=body, headers={**headers, "Content-Encoding": "br"})
    assert other.status_code == 415


def test_a_text_that_is_no_utf_8_is_refused():
    from sonde.serving.open_inference import _as_text

    with pytest.raises(Refusal, match="Input 3: expected a text in UTF-8"):
        _as_text(b"\xff", 3)
