"""What it costs to be watched: sonde serve beside the same server without it, and LitServe.

All servers run at the same time and are asked in turn, so that a busy machine slows all of them.
Closed loop: each client asks again as soon as it has its answer. Fixed rate: requests leave at 70 %
of the throughput that the plain server has with as many clients, whatever the answers take; the
time of a request counts from when it was due. On a machine that does other work too, the processor
time of a request, of all processes of a server, says more than its throughput.
"""

import asyncio
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx

import sonde
from benchmarks.protocol import PLAIN
from benchmarks.rows import Row, not_measured
from benchmarks.serving_models import (
    SITES,
    SMALL_TEXT,
    TEXT,
    TINY_TEXT,
    net,
    rows,
    text_sites,
    texts,
    write_text_model,
)
from benchmarks.size import Size
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fitted import Fitted

ARMS = {
    "plain": "Starlette alone",
    "litserve": "LitServe",
    "none": "sonde serve",
    "probe": "sonde serve with a probe",
    "exact": "sonde serve with a probe, batch-invariant",
}
BUDGETS = {
    "small text": {"none": 0.9, "probe": 0.6},
    "text": {"none": 0.9, "probe": 0.85},
    "net": {"none": 0.9},
}
"""Least throughput over that of the plain server; the probes have ten detector-sites."""
MORE_LATENCY, LOAD = 1.15, 0.7
Figures = dict[str, float]


def serve_rows(size: Size) -> list[Row]:
    """Throughput and latency of each server against the plain one: a small net, a text model."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        each = (("small text", SMALL_TEXT, 1000, 1500), ("text", TEXT, 100, 64))
        for title, full, n_rows, n_requests in each:
            sizes = TINY_TEXT if size.tiny else full
            model, path = Path(folder) / title, Path(folder) / f"{title}.sonde"
            write_text_model(model, sizes)
            probe_of_text(str(model), sizes, size.pick(n_rows, 80)).save(path)
            bodies = [{"inputs": [text]} for text in texts(200, 2, sizes)]
            found += _rows(title, str(model), path, bodies, size.pick(n_requests, 24), size)
        probe = Path(folder) / "net.sonde"
        width = size.pick(1024, 16)
        probe_of(width, size.pick(2000, 120)).save(probe)
        bodies = [{"inputs": [row]} for row in rows(200, 2)]
        found += _rows("net", str(width), probe, bodies, size.pick(300, 24), size)
    return found


def probe_of(width: int, n: int) -> Fitted:
    """Return detectors of the net at all hidden layers, calibrated on rows of their own."""
    model = net(width)
    stream = sonde.read(model, _tensors(n, 0), sites=SITES)
    knn = KNN(k=10, m=min(1000, n))
    fitted = sonde.fit([Mahalanobis(), knn], stream, calibrate=0, progress=False)
    return sonde.calibrate(fitted, model, _tensors(n, 1), progress=False)


def probe_of_text(folder: str, sizes: dict[str, int], n: int) -> Fitted:
    """Return two detectors at some sites of the text model, calibrated on texts of their own."""
    stream = sonde.read(folder, texts(n, 0, sizes), sites=text_sites(sizes), batch_size=32)
    knn = KNN(k=10, m=min(1000, n))
    fitted = sonde.fit([Mahalanobis(), knn], stream, calibrate=0, progress=False)
    return sonde.calibrate(fitted, folder, texts(n, 1, sizes), progress=False)


def _tensors(n: int, seed: int) -> list[Any]:
    import torch

    return [torch.tensor(row) for row in rows(n, seed)]


def _rows(
    title: str, model: str, probe: Path, bodies: list[dict[str, Any]], n: int, size: Size
) -> list[Row]:
    """Return the figures of one model, medians over rounds in which every server is asked."""
    sent = [json.dumps(body).encode() for body in bodies]
    found: list[Row] = []
    with ExitStack() as stack:
        servers = {arm: stack.enter_context(_server(arm, model, probe, bodies[0])) for arm in ARMS}
        for clients in size.pick((1, 8, 64), (1, 4)):
            where = f"{title}, {clients} clients"
            try:
                found += _rows_of(where, servers, clients, max(n, 4 * clients), sent, size)
            except aiohttp.ClientError as error:  # the other rows took long
                found.append(not_measured("serve", where, repr(error)))
    return found


def _rows_of(
    where: str, servers: dict[str, "Server"], clients: int, n: int, sent: list[bytes], size: Size
) -> list[Row]:
    """Return the figures of one number of clients."""
    for server in servers.values():
        asyncio.run(closed_loop(server, clients, max(clients, n // 10), sent))
    rounds = [
        {arm: asyncio.run(closed_loop(servers[arm], clients, n, sent)) for arm in ARMS}
        for _ in range(size.rounds)
    ]
    closed = {arm: _median([each[arm] for each in rounds]) for arm in ARMS}
    rate = LOAD * closed["plain"]["rate"]
    rounds = [
        {arm: asyncio.run(fixed_rate(servers[arm], clients, n, sent, rate)) for arm in ARMS}
        for _ in range(size.rounds)
    ]
    fixed = {arm: _median([each[arm] for each in rounds]) for arm in ARMS}
    return _figures(where, closed, fixed, rate, size.rounds)


def _median(found: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def _figures(
    where: str,
    closed: Mapping[str, Figures],
    fixed: Mapping[str, Figures],
    rate: float,
    rounds: int,
) -> list[Row]:
    found: list[Row] = []
    for arm, title in ARMS.items():
        mine, at_rate = closed[arm], fixed[arm]
        note = f"{mine['rate']:.0f}/s, p50 {mine['p50']:.1f} ms, p99 {mine['p99']:.1f} ms"
        if arm == "plain":
            row = Row("serve", f"{title}, {where}", mine["p50"], "ms", rounds=rounds, note=note)
            found.append(row)
            continue
        less = closed["plain"]["rate"] / mine["rate"]
        least = BUDGETS[where.partition(",")[0]].get(arm)
        budget = None if least is None else 1 / least
        took = mine["seconds"] / closed["plain"]["seconds"]
        said = f"{1e3 * mine['seconds']:.2f} ms"
        found.append(
            Row(
                "serve",
                f"{title}, {where}: processor time / {PLAIN}",
                took,
                budget=budget,
                note=said,
            )
        )
        what = f"{title}, {where}: {PLAIN} throughput / its"
        found.append(Row("serve", what, less, budget=budget, rounds=rounds, note=note))
        for q in ("p50", "p99"):
            base = fixed["plain"][q]
            what = f"{title}, {where}, {rate:.0f}/s: {q} / {PLAIN}"
            limit = None if budget is None else MORE_LATENCY
            said = f"{at_rate[q]:.1f} ms, {PLAIN} {base:.1f} ms"
            found.append(Row("serve", what, at_rate[q] / base, budget=limit, note=said))
    return found


@dataclass(frozen=True)
class Server:
    """A running server; all of its processes are in one group.

    Parameters
    ----------
    address : str
    group : int
    """

    address: str
    group: int

    def processor_seconds(self) -> float:
        """Return the processor time that its processes have used; NaN without ``/proc``."""
        found = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                found += int(fields[2]) == self.group and int(fields[11]) + int(fields[12])
        return found / os.sysconf("SC_CLK_TCK") if found else math.nan


@contextmanager
def _server(arm: str, model: str, probe: Path, body: dict[str, Any]) -> Iterator[Server]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.serving_arms", arm, str(port), model]
    process = subprocess.Popen(
        [*command, str(probe)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server {arm} did not start")
            try:
                if httpx.post(f"{address}/predict", json=body, timeout=60).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield Server(address, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _times(found: list[float], due: float) -> Iterator[None]:
    yield
    found.append(time.perf_counter() - due)


async def _ask(asked: aiohttp.ClientSession, body: bytes) -> None:
    async with asked.post("/predict", data=body) as found:
        await found.read()
        found.raise_for_status()


async def _connect(asked: aiohttp.ClientSession, clients: int, body: bytes) -> None:
    """Open all connections, which takes longer than the requests of a short measurement."""
    await asyncio.gather(*(_ask(asked, body) for _ in range(clients)))


def _client(address: str, clients: int) -> aiohttp.ClientSession:
    # httpx looks at every connection for each request: with 64 of them it sent 155 a second, and
    # all servers looked alike. uvicorn closes a connection that was idle for 5 s. One that was for
    # 2 s is not used again, or a request could meet the close.
    connector = aiohttp.TCPConnector(limit=clients, keepalive_timeout=2.0)
    headers, most = {"Content-Type": "application/json"}, aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(address, connector=connector, headers=headers, timeout=most)


async def closed_loop(server: Server, clients: int, n: int, bodies: list[bytes]) -> Figures:
    """Return requests per second, processor time and quantiles of the time of a request."""
    left, times = iter(range(n)), list[float]()

    async def one(asked: aiohttp.ClientSession) -> None:
        for i in left:
            with _times(times, time.perf_counter()):
                await _ask(asked, bodies[i % len(bodies)])

    async with _client(server.address, clients) as asked:
        await _connect(asked, clients, bodies[0])
        began, used = time.perf_counter(), server.processor_seconds()
        await asyncio.gather(*(one(asked) for _ in range(clients)))
        seconds = time.perf_counter() - began
        # The kernel counts in ticks: a short measurement can end before the first one.
        used = max(server.processor_seconds() - used, 1 / os.sysconf("SC_CLK_TCK"))
    return {"rate": n / seconds, "seconds": used / n, **_quantiles(times)}


async def fixed_rate(
    server: Server, clients: int, n: int, bodies: list[bytes], rate: float
) -> Figures:
    """Return quantiles of the time from when a request was due to its answer."""
    left, times = iter(range(n)), list[float]()
    async with _client(server.address, clients) as asked:
        await _connect(asked, clients, bodies[0])
        began = time.perf_counter()

        async def one() -> None:
            for i in left:
                due = began + i / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                with _times(times, due):
                    await _ask(asked, bodies[i % len(bodies)])

        await asyncio.gather(*(one() for _ in range(clients)))
    return _quantiles(times)


def _quantiles(times: list[float]) -> Figures:
    found = statistics.quantiles(times, n=100)
    return {"p50": 1e3 * found[49], "p99": 1e3 * found[98]}
