"""What is refused, with which status and sentence; and that nothing of an input is repeated."""

import asyncio
import io
import json
import logging
import time

import pytest
import torch
from PIL import Image
from torch import nn

from serving_case import asked, net, probe, rows, run_apart, served
from sonde.core.errors import InputError, SondeError
from sonde.serving import Limits, app
from sonde.serving.authentication import read_token
from sonde.serving.bodies import Rows, picture, read_body
from sonde.serving.refusals import Refusal
from sonde.serving.running import Settings, check

TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = "my-own-secret"


@pytest.fixture(scope="module")
def model():
    return net()


HOSTILE = {
    b"": 400,
    b"{": 400,
    b"[]": 400,
    b'{"inputs": []}': 400,
    b'{"inputs": {}}': 400,
    b'{"inputs": [NaN]}': 400,
    b'{"inputs": [[NaN]]}': 400,
    b'{"inputs": ["my-own-secret"]}': 400,
    b'{"inputs": [{"my-own-secret": 1}]}': 400,
    b'{"inputs": [[1, [2]]]}': 400,
    b'{"inputs": [[1, "my-own-secret"]]}': 400,
    b'{"inputs": [[1, 2]]}': 400,
    b'{"inputs": [null]}': 400,
    b'{"inputs": [[' + b"9" * 400 + b"]]}": 400,
    b"[" * 5000: 400,
    b"\xff\xfe": 400,
    b'{"inputs": [' + b"[1,2,3,4,5]," * 300 + b"[1,2,3,4,5]]}": 413,
    b'{"inputs": ["' + b"a" * 200_000 + b'"]}': 413,
}


def test_hostile_bodies_get_a_sentence_and_the_server_goes_on(model, caplog):
    caplog.set_level(logging.DEBUG)
    with served(model, probe(model, 60), limits=Limits(body_bytes=100_000)) as client:
        good = asked(client, rows(2, 1))
        for body, code in HOSTILE.items():
            found = client.post(
                "/predict", content=body, headers={"content-type": "application/json"}
            )
            assert found.status_code == code, (body[:60], found.text)
            assert found.json()["error"].endswith("."), found.text
            assert SECRET not in found.text
        plain = client.post("/predict", content=b"{}", headers={"content-type": "text/plain"})
        form = {"content-type": "multipart/form-data; boundary=x"}
        assert client.post("/predict", content=b"junk", headers=form).status_code == 400
        assert plain.status_code == 415
        assert client.get("/nowhere").json()["error"]
        after = asked(client, rows(2, 1))
        assert SECRET not in client.get("/metrics").text
    assert [a["p"] for a in after] == [a["p"] for a in good]
    assert SECRET not in caplog.text


def test_a_text_has_at_most_the_stated_tokens():
    with served("sonde:stdlib", limits=Limits(tokens=5)) as client:  # a token is a byte
        for text, code in {"ab cd": 200, "ab cde": 413, "ab": 200, "": 400}.items():
            found = client.post("/predict", json={"inputs": [text]})
            assert found.status_code == code, found.text
            beside = client.post("/predict", json={"inputs": ["ok", text]}).json()["answers"]
            assert [one.get("status", 200) for one in beside] == [200, code]


class Picky(nn.Module):
    """Fails at a batch with a negative first number."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        if bool((x[:, 0] < 0).any()):
            raise RuntimeError(f"{SECRET} {x.tolist()}")
        return self.linear(x)


def test_a_bad_input_fails_alone():
    rows_of = [[float(i), 0.5, 2.0] for i in range(5)]

    async def ask(made):
        import httpx

        transport = httpx.ASGITransport(app=made)
        async with (
            made.router.lifespan_context(made),
            httpx.AsyncClient(transport=transport, base_url="http://sonde") as client,
        ):
            while (await client.get("/v2/health/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            await client.post("/predict", json={"inputs": rows_of})
            every = [*rows_of, [-1.0, 0.0, 0.0]]
            return await asyncio.gather(
                *(client.post("/predict", json={"inputs": [row]}) for row in every)
            )

    found = run_apart(ask(app(Picky(), limits=Limits(wait_seconds=0.05))))
    assert [answer.status_code for answer in found] == [200] * 5 + [500]
    assert SECRET not in found[-1].text
    assert "failed on this input (RuntimeError)" in found[-1].json()["error"]


def test_the_token_guards_every_address_but_health(model):
    with served(model, token=TOKEN) as client:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        paths = [("GET", p) for p in ("/", "/metrics", "/openapi.json", "/v2", "/feedback", "/x")]
        paths += [("POST", "/predict"), ("POST", "/feedback"), ("GET", "/v2/models/Sequential")]
        for verb, path in paths:
            assert client.request(verb, path).status_code == 401, path
            wrong = {"Authorization": f"Bearer {TOKEN[:-1]}x"}
            assert client.request(verb, path, headers=wrong).status_code == 401
        assert client.get("/metrics", headers=bearer).status_code == 200
        assert client.get("/metrics", auth=("anybody", TOKEN)).status_code == 200
        body = {"inputs": [rows(1, 0)[0].tolist()]}
        assert client.post("/predict", json=body, headers=bearer).status_code == 200
        assert client.post("/predict", json=body, auth=("anybody", TOKEN)).status_code == 401
        assert client.get("/v2/health/live").status_code == 200
        cross = client.options("/predict", headers={"Origin": "http://evil", **bearer})
        assert "access-control-allow-origin" not in cross.headers


def test_settings_that_are_unsafe_are_refused(tmp_path):
    with pytest.raises(InputError, match="token-file"):
        check(Settings("sonde:digits", host="0.0.0.0"))
    short = tmp_path / "token"
    short.write_text("abc\n")
    with pytest.raises(InputError, match="at least 16"):
        read_token(short)
    short.write_text(f"{TOKEN}\nsecond line")
    assert read_token(short) == TOKEN
    check(Settings("sonde:digits", host="0.0.0.0", token_file=str(short)))


def test_a_damaged_probe_is_refused_before_the_server_starts(tmp_path):
    damaged = tmp_path / "probe.sonde"
    damaged.write_bytes(b"SONDE\x00" * 9)
    with pytest.raises(SondeError, match=r"probe\.sonde"):
        check(Settings("sonde:digits", probe=str(damaged)))


def test_503_while_the_model_loads_and_when_it_cannot_be():
    def slowly():
        time.sleep(0.3)
        return net()

    from starlette.testclient import TestClient

    with TestClient(app(slowly)) as client:
        early = client.post("/predict", json={"inputs": [[0.0] * 5]})
        assert early.status_code == 503
        assert early.headers["Retry-After"] == "1"
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
    with TestClient(app("/no/such/model")) as client:
        until = time.monotonic() + 20
        while "error" not in (said := client.get("/v2/health/ready").json()):
            assert time.monotonic() < until
        assert said["error"]
        assert client.post("/predict", json={"inputs": [[0.0]]}).status_code == 503


def test_a_request_longer_than_the_queue_is_told_so(model):
    with served(model, limits=Limits(queue=4, batch=2)) as client:
        found = client.post("/predict", json={"inputs": [[0.5] * 5] * 5})
        assert found.status_code == 413, "it would never fit"
        assert client.post("/predict", json={"inputs": [[0.5] * 5] * 4}).status_code == 200


def test_a_slow_body_is_given_up():
    class Slow:
        def __init__(self):
            self.headers = {}

        async def stream(self):
            yield b"{"
            await asyncio.sleep(5)

    began = time.monotonic()
    with pytest.raises(Refusal, match="only 1 bytes") as caught:
        run_apart(read_body(Slow(), Limits(body_seconds=0.05)))
    assert caught.value.status == 408
    assert time.monotonic() - began < 2


def test_pictures_are_measured_before_they_are_decoded():
    box = io.BytesIO()
    Image.new("1", (9000, 9000)).save(box, "PNG")
    assert len(box.getvalue()) < 20_000
    with pytest.raises(Refusal, match="pixels") as caught:
        picture(box.getvalue(), 0, Limits())
    assert caught.value.status == 413
    noise = torch.randint(0, 256, (64, 64), generator=torch.Generator().manual_seed(0))
    cut = io.BytesIO()
    Image.fromarray(noise.byte().numpy()).save(cut, "PNG")
    for content in (cut.getvalue()[:900], b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(Refusal, match="cannot be decoded"):
            picture(content, 0, Limits())
    reader = Rows("image", ("image",), Limits())
    for wrong in ("/etc/passwd", {"path": "/etc/passwd"}, {"b64": "#"}, {"b64": 3}, [1]):
        (refused,) = reader.of([wrong])
        assert refused.sentence.startswith("Input 0: ")


def test_answers_that_are_not_finite_are_null_and_alarm(model):
    broken = net()
    fitted = probe(broken, 60)
    with served(broken, fitted) as client:
        (found,) = asked(client, [torch.full((5,), 3e38)])
    assert json.loads(json.dumps(found, allow_nan=False))
    assert found["alarm"] in (True, None)
    assert found["score"]["mahalanobis"]["1:out"] is None or found["alarm"]


@pytest.mark.parametrize(
    ("headers", "is_taken"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "https://example.org"}, False),
        ({"Origin": "null"}, False),
    ],
)
def test_requests_of_other_web_pages_are_refused_without_a_token(model, headers, is_taken):
    row = [0.5] * 5
    with served(model) as client:
        for path, body in (("/predict", {"inputs": [row]}), ("/changes/ack", {})):
            found = client.post(path, json=body, headers=headers)
            assert (found.status_code == 200) == is_taken, found.text
            assert is_taken or (found.status_code == 403 and "--token-file" in found.text)
        form = client.post("/predict", files={"x": b"a"}, headers=headers)
        assert (form.status_code != 403) == is_taken
        assert client.get("/v2/health/live", headers=headers).status_code == 200
        n = 'sonde_requests_total{code="200",route="predict"} 1.0'
        assert (n in client.get("/metrics").text) == is_taken
