"""Forward passes that hang, clients that have gone, and queues that are full from the first."""

import asyncio
import json
import threading
import time

import pytest
from torch import nn

from serving_case import DIM, run_apart
from sonde.serving import app
from sonde.serving.limits import Limits


class Gate(nn.Module):
    """A classifier that counts its forward passes, and holds them until it is opened."""

    def __init__(self):
        super().__init__()
        self.head, self.is_open, self.n = nn.Linear(DIM, 3), threading.Event(), 0
        self.is_open.set()

    def forward(self, x):
        self.n += 1
        self.is_open.wait(20)
        return self.head(x)


class Client:
    """A client of an application that leaves after some seconds."""

    def __init__(self, made):
        self._made = made

    async def ask(self, path, body=None, stays=20.0):
        until, said = time.monotonic() + stays, []
        parts = [b"" if body is None else json.dumps(body).encode()]

        async def receive():
            if parts:
                return {"type": "http.request", "body": parts.pop()}
            if (left := until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            return {"type": "http.disconnect"}

        async def send(message):
            said.append(message)

        scope = {
            "type": "http",
            "method": "GET" if body is None else "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        }
        await self._made(scope, receive, send)
        return said[0]["status"], json.loads(said[1]["body"] or b"{}")


def body(n=1):
    return {"inputs": [[0.5] * DIM] * n}


async def ready(made):
    await made.state.service.loaded()
    return Client(made)


@pytest.mark.truth("the number of forward passes")
def test_no_forward_pass_is_made_for_clients_that_have_gone():
    model = Gate().eval()

    async def scenario():
        client = await ready(app(model, limits=Limits(batch=1)))
        assert (await client.ask("/predict", body()))[0] == 200
        model.is_open.clear()
        first = asyncio.create_task(client.ask("/predict", body()))
        await asyncio.sleep(0.05)
        gone = [client.ask("/predict", body(), stays=0.01) for _ in range(8)]
        assert {code for code, _ in await asyncio.gather(*gone)} == {499}
        before = model.n
        model.is_open.set()
        assert (await first)[0] == 200
        assert (await client.ask("/predict", body()))[0] == 200
        return model.n - before

    assert run_apart(scenario()) == 1


def test_a_hanging_forward_pass_is_told():
    model = Gate().eval()

    async def scenario():
        made = app(model, stall_seconds=0.2, limits=Limits(batch=1))
        client = await ready(made)
        assert (await client.ask("/predict", body()))[0] == 200
        model.is_open.clear()
        hanging = [asyncio.create_task(client.ask("/predict", body())) for _ in range(3)]
        await asyncio.sleep(0.1)
        early = await client.ask("/v2/health/live")
        await asyncio.sleep(0.3)
        late = await client.ask("/v2/health/live"), await client.ask("/v2/health/ready")
        text = made.state.service.metrics()
        model.is_open.set()
        await asyncio.gather(*hanging)
        return early, late, text, await client.ask("/v2/health/live")

    early, (live, is_ready), text, after = run_apart(scenario())
    assert early == after == (200, {"live": True})
    assert live[0] == is_ready[0] == 503
    assert "forward pass has been running" in live[1]["error"]
    assert "sonde_waiting_inputs 2.0" in text
    assert "sonde_ready 0.0" in text


@pytest.mark.parametrize("is_known", [False, True], ids=["first requests", "later"])
def test_requests_beyond_the_queue_get_429(is_known):
    model = Gate().eval()

    async def scenario():
        client = await ready(app(model, limits=Limits(queue=6, batch=2)))
        if is_known:
            assert (await client.ask("/predict", body()))[0] == 200
        model.is_open.clear()
        asking = [asyncio.create_task(client.ask("/predict", body(2))) for _ in range(7)]
        await asyncio.sleep(0.5)
        model.is_open.set()
        return [await one for one in asking]

    began = time.monotonic()
    found = run_apart(scenario())
    assert time.monotonic() - began < 15
    codes = [code for code, _ in found]
    assert 2 <= codes.count(200) <= 5
    assert codes.count(429) == 7 - codes.count(200)
    assert all("Send the request again" in said["error"] for code, said in found if code == 429)
