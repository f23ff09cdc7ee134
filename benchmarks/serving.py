"""What it costs to be watched: sonde serve beside the same server without it, and what it promises.

One closed loop for each number of clients: each asks again as soon as it has its answer.
"""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

import sonde
from benchmarks.protocol import PLAIN
from benchmarks.rows import Row
from benchmarks.serving_arms import N_INPUTS, SITES, net
from benchmarks.size import Size
from sonde.detect import KNN, Mahalanobis
from sonde.run.bundles.fitted import Fitted
from sonde.serving import Limits, app

ARMS = {
    "plain": "Starlette alone",
    "litserve": "LitServe",
    "none": "sonde serve",
    "probe": "sonde serve with a probe",
}
LESS_THROUGHPUT, MORE_LATENCY, ALPHA = 1 / 0.9, 1.15, 0.05
MALFORMED = (b"", b"{", b"[]", b'{"inputs": [[NaN]]}', b'{"inputs": "x"}', b"\xff", b"[" * 4000)


def serve_rows(size: Size) -> list[Row]:
    """Throughput and latency of each server, against the plain one."""
    width, n = size.pick(1024, 16), size.pick(2000, 24)
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.sonde"
        probe_of(width, size.pick(2000, 120)).save(probe)
        found = {arm: _measured(arm, width, probe, n, size) for arm in ARMS}
    rows: list[Row] = []
    for clients, base in found["plain"].items():
        for arm, title in ARMS.items():
            mine, where = found[arm][clients], f"{title}, {clients} clients"
            note = f"{mine['rate']:.0f}/s, p50 {mine['p50']:.1f} ms, p99 {mine['p99']:.1f} ms"
            if arm == "plain":
                rows.append(Row("serve", where, mine["p50"], "ms", note=note))
                continue
            ours = arm != "litserve"
            less = base["rate"] / mine["rate"]
            budget = LESS_THROUGHPUT if ours else None
            rows.append(Row("serve", f"{where}: time of a request", less, budget=budget, note=note))
            more = mine["p99"] / base["p99"]
            limit = MORE_LATENCY if ours else None
            rows.append(Row("serve", f"{where}: p99 / {PLAIN}", more, budget=limit))
    return rows


def probe_of(width: int, n: int) -> Fitted:
    """Return detectors of the net at all hidden layers, calibrated on rows of their own."""
    model = net(width)
    stream = sonde.read(model, _inputs(n, 0), sites=SITES)
    knn = KNN(k=10, m=min(1000, n))
    fitted = sonde.fit([Mahalanobis(), knn], stream, calibrate=0, progress=False)
    return sonde.calibrate(fitted, model, _inputs(n, 1), progress=False)


def _inputs(n: int, seed: int, shift: float = 0.0) -> list[torch.Tensor]:
    return list(torch.randn(n, N_INPUTS, generator=torch.Generator().manual_seed(seed)) + shift)


def _measured(arm: str, width: int, probe: Path, n: int, size: Size) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    with _server(arm, width, probe) as address:
        for clients in size.pick((1, 8, 64), (1, 4)):
            asyncio.run(_loop(address, clients, max(clients, n // 10)))
            found[clients] = asyncio.run(_loop(address, clients, n))
    return found


@contextmanager
def _server(arm: str, width: int, probe: Path) -> Iterator[str]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.serving_arms", arm, str(port), str(width)]
    process = subprocess.Popen(
        [*command, str(probe)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"
    body, until = {"inputs": [[0.0] * N_INPUTS]}, time.monotonic() + 120
    try:
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server {arm} did not start")
            try:
                if httpx.post(f"{address}/predict", json=body, timeout=30).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _loop(address: str, clients: int, n: int) -> dict[str, float]:
    """Return requests per second, and quantiles of the time of a request."""
    bodies = [json.dumps({"inputs": [x.tolist()]}).encode() for x in _inputs(min(n, 200), 2)]
    left, times = iter(range(n)), list[float]()
    limits = httpx.Limits(max_connections=clients)
    headers = {"Content-Type": "application/json"}

    async def client(asked: httpx.AsyncClient) -> None:
        for i in left:
            began = time.perf_counter()
            found = await asked.post("/predict", content=bodies[i % len(bodies)])
            found.raise_for_status()
            times.append(time.perf_counter() - began)

    async with httpx.AsyncClient(
        base_url=address, limits=limits, timeout=60, headers=headers
    ) as asked:
        began = time.perf_counter()
        await asyncio.gather(*(client(asked) for _ in range(clients)))
        seconds = time.perf_counter() - began
    quantiles = statistics.quantiles(times, n=100)
    return {"rate": n / seconds, "p50": 1e3 * quantiles[49], "p99": 1e3 * quantiles[98]}


def promise_rows(size: Size) -> list[Row]:
    """Alarm rate, a planted change, answers that are exchanged, and malformed bodies."""
    width, n = size.pick(256, 16), size.pick(10_000, 300)
    return asyncio.run(_promises(width, n, size))


async def _promises(width: int, n: int, size: Size) -> list[Row]:
    made = app(net(width), probe_of(width, size.pick(4000, 400)), limits=Limits(queue=100_000))
    transport = httpx.ASGITransport(app=made)
    async with (
        made.router.lifespan_context(made),
        httpx.AsyncClient(transport=transport, base_url="http://sonde", timeout=None) as client,
    ):
        while (await client.get("/v2/health/ready")).status_code != 200:
            await asyncio.sleep(0.05)
        rate, told = await _alarms(client, made.state.service, n)
        wrong = await _exchanged(client, size.pick(100_000, 200))
        bad = await _malformed(client, size.pick(10_000, 20))
    spread = 3 * (ALPHA * (1 - ALPHA) / n) ** 0.5
    name = "serve-promise"
    return [
        Row(
            name, f"alarm rate of {n:,} inputs like those that calibrated", rate, "", ALPHA, spread
        ),
        Row(name, "inputs until a planted change is told", told, "inputs", 200),
        Row(name, "answers of another request", wrong, "answers", 0),
        Row(name, "malformed bodies without a sentence", bad, "bodies", 0),
    ]


async def _alarms(client: httpx.AsyncClient, service: Any, n: int) -> tuple[float, float]:
    """Return the alarm rate of ``n`` usual inputs, and how many moved ones it takes to tell."""
    alarms = 0
    for first in range(0, n, 100):
        rows = [x.tolist() for x in _inputs(min(100, n - first), 10 + first)]
        found = (await client.post("/predict", json={"inputs": rows})).json()
        alarms += sum(bool(one["alarm"]) for one in found["answers"])
    before = len(service.changes.alarms)
    for first in range(0, 400, 20):
        rows = [x.tolist() for x in _inputs(20, 900_000 + first, shift=1.5)]
        await client.post("/predict", json={"inputs": rows})
        await asyncio.sleep(0.05)
        if len(service.changes.alarms) > before:
            return alarms / n, [*service.changes.alarms][before].told - n + 1.0
    return alarms / n, float("inf")


async def _exchanged(client: httpx.AsyncClient, n: int) -> int:
    """Return how many of ``n`` concurrent requests got the answer to another input."""
    rows = [x.tolist() for x in _inputs(97, 5)]
    wanted = (await client.post("/predict", json={"inputs": rows})).json()["answers"]
    ids: set[str] = set()
    n_wrong = 0
    for first in range(0, n, 1000):
        which = [i % len(rows) for i in range(first, min(n, first + 1000))]
        each = (client.post("/predict", json={"inputs": [rows[i]]}) for i in which)
        for i, found in zip(which, await asyncio.gather(*each), strict=True):
            (answer,) = found.json()["answers"]
            n_wrong += answer["p"] != wanted[i]["p"] or answer["id"] in ids
            ids.add(answer["id"])
    return n_wrong


async def _malformed(client: httpx.AsyncClient, n: int) -> int:
    """Return how many malformed bodies, ``n`` of each kind, got no 400 with a sentence."""
    n_wrong = 0
    headers = {"Content-Type": "application/json"}
    for body in MALFORMED:
        for _ in range(n):
            found = await client.post("/predict", content=body, headers=headers)
            n_wrong += found.status_code != 400 or not found.json()["error"].endswith(".")
    return n_wrong
