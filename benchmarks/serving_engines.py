"""``python -m benchmarks.serving_engines FOLDER``: sonde serve --engine vllm beside vLLM's server.

Run in the environment of ``make test-vllm``; FOLDER is a model such as ``.lm/smollm2``. Both
servers run at the same time and are asked in turn for the same greedy completions as streams, by 1,
8 and 32 clients that ask again as soon as they have an answer. vLLM runs without captured graphs
and without its cache of prefixes, as sonde serve runs it; the probe is Mahalanobis on the means
behind three blocks. Times are medians over rounds of one server over the other; the processor time
is that of all processes of a server.
"""

import argparse
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import aiohttp
import httpx

import sonde
from benchmarks.engines import prompts
from benchmarks.protocol import PLAIN
from benchmarks.rows import Row, table
from benchmarks.serving import Figures, Server
from sonde.detect import Mahalanobis

NAME, PROBED, BARE = "serving-engines", "sonde serve with a probe", "sonde serve"
TOKENS_BUDGET, FIRST_BUDGET = 1 / 0.90, 1.15
"""Most of vLLM's tokens per second over those with a probe, and of the times to the first token."""
CLIENTS, CONTEXT = (1, 8, 32), 1024


def probe_of(folder: str, n: int) -> Any:
    """Return a calibrated detector of prompts, on the means behind three blocks."""
    model = sonde.load(folder, device="cpu")
    every = sonde.read(model, prompts("docs", 1), sites="blocks", check=False).schema
    sites = [every[i * (len(every) - 1) // 2].site for i in range(3)]
    stream = sonde.read(model, prompts("docs", n), sites=sites, reducer="mean")
    fitted = sonde.fit(Mahalanobis(shrinkage=0.1), stream, calibrate=0, progress=False)
    return sonde.calibrate(fitted, model, prompts("docs", n, n), progress=False)


@contextmanager
def started(command: Sequence[str], port: int) -> Iterator[Server]:
    """Run a server in a group of its own until the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            try:
                if httpx.get(f"{address}/v1/models", timeout=60).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield Server(address, process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def commands(folder: str, probe: str) -> dict[str, list[str]]:
    """Return the command of each server, without its port."""
    python = sys.executable
    # the command ``vllm serve`` asks for a distribution of that name, which vllm-cpu is not
    vllm = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    vllm += ["--enforce-eager", "--disable-log-stats"]
    vllm += ["--no-enable-prefix-caching", "--dtype", "float32", "--max-model-len", str(CONTEXT)]
    ours = [python, "-m", "sonde", "serve", folder]
    return {
        PLAIN: vllm,
        PROBED: [*ours, probe, "--engine", "vllm"],
        BARE: [*ours, "--engine", "vllm"],
    }


async def completion(asked: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[float, int]:
    """Return the seconds to the first text of a streamed completion, and its tokens."""
    began, first, n = time.perf_counter(), 0.0, 0
    async with asked.post("/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            if not first and any(choice["text"] for choice in piece["choices"]):
                first = time.perf_counter() - began
            n = (piece.get("usage") or {}).get("completion_tokens", n)
    return first, n


async def asked_by(server: Server, clients: int, bodies: Sequence[dict[str, Any]]) -> Figures:
    """Return tokens per second, their processor time, and the median time to the first token."""
    left, outcomes = iter(bodies), list[tuple[float, int]]()
    connector = aiohttp.TCPConnector(limit=clients)
    most = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(server.address, connector=connector, timeout=most) as asked:

        async def one() -> None:
            for body in left:
                outcomes.append(await completion(asked, body))

        began, used = time.perf_counter(), server.processor_seconds()
        await asyncio.gather(*(one() for _ in range(clients)))
        seconds, used = time.perf_counter() - began, server.processor_seconds() - used
    n = sum(tokens for _, tokens in outcomes)
    first = statistics.median(seconds for seconds, _ in outcomes)
    return {"tokens": n, "rate": n / seconds, "seconds": used / n, "first": first}


def body_of(server: Server, text: str, new: int) -> dict[str, Any]:
    """Return the request of a streamed greedy completion."""
    models = httpx.get(f"{server.address}/v1/models", timeout=60).json()
    return {
        "model": models["data"][0]["id"],
        "prompt": text,
        "max_tokens": new,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def measured(servers: dict[str, Server], clients: int, n: int, new: int, rounds: int) -> list[Row]:
    """Return the figures of one number of clients."""
    found: dict[str, list[Figures]] = {name: [] for name in servers}
    for i in range(rounds):
        texts = [one["text"] for one in prompts("docs", n, 200 + i * n)]
        for name, server in servers.items():
            bodies = [body_of(server, text, new) for text in texts]
            found[name].append(asyncio.run(asked_by(server, clients, bodies)))
    rows: list[Row] = []
    for name, each in found.items():
        middle = {key: statistics.median(one[key] for one in each) for key in each[0]}
        print(
            f"{clients:2} clients, {name:25} {middle['rate']:7.1f} tokens/s, first token after "
            f"{1e3 * middle['first']:6.0f} ms, processor time of a token "
            f"{1e3 * middle['seconds']:6.1f} ms, {[int(one['tokens']) for one in each]} tokens",
            flush=True,
        )
        if name == PLAIN:
            continue
        pairs = [*zip(each, found[PLAIN], strict=True)]
        where = f"{name}, {clients} clients"
        is_probed = name == PROBED
        for what, ratios, budget in (
            (
                f"{PLAIN} tokens/s over its",
                [p["rate"] / o["rate"] for o, p in pairs],
                TOKENS_BUDGET,
            ),
            (f"first token / {PLAIN}", [o["first"] / p["first"] for o, p in pairs], FIRST_BUDGET),
            (f"processor time / {PLAIN}", [o["seconds"] / p["seconds"] for o, p in pairs], None),
        ):
            value, most = statistics.median(ratios), budget if is_probed else None
            note = f"{min(ratios):.2f} to {max(ratios):.2f}"
            rows.append(Row(NAME, f"{where}: {what}", value, "x", most, rounds=rounds, note=note))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--requests", type=int, default=32, help="requests of a round, at least")
    parser.add_argument("--new", type=int, default=24, help="most new tokens of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help="ask sonde serve without a probe too")
    typed = parser.parse_args(arguments)
    folder = str(typed.folder.resolve())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        probe = str(Path(place) / "probe.sonde")
        probe_of(folder, 60).save(probe)
        servers: dict[str, Server] = {}
        for name, command in commands(folder, probe).items():
            if name == BARE and not typed.bare:
                continue
            with socket.socket() as one:
                one.bind(("127.0.0.1", 0))
                port = one.getsockname()[1]
            servers[name] = stack.enter_context(started([*command, "--port", str(port)], port))
        for server in servers.values():
            asyncio.run(asked_by(server, 1, [body_of(server, "one", 4)]))
        for clients in typed.clients:
            n = typed.requests if clients > 1 else max(4, typed.requests // 4)
            rows += measured(servers, clients, max(n, clients), typed.new, typed.rounds)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
