"""``python -m benchmarks.serving_requests``: what a request costs, without sockets.

The plain batching server, ``sonde serve`` and ``sonde serve`` with ten detector-sites run in this
process, one after another in turns, and are called as servers call applications. A text comes in
each request, and 64 clients ask again as soon as they have an answer. Printed are medians over
rounds of the processor time of a request, that of the thread that reads requests, and the ratio to
the plain server in the same round.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.serving import probe_of_text
from benchmarks.serving_arms import plain
from benchmarks.serving_models import SMALL_TEXT, TEXT, texts, write_text_model
from sonde.serving import app

ARMS: Final = ("plain server", "sonde serve", "sonde serve with a probe")
SIZES: Final = {"small": (SMALL_TEXT, 1_000), "large": (TEXT, 100)}
WARM: Final = 256
Ask = Callable[[bytes], Awaitable[int]]
Times = tuple[float, float]


def asking(application: Any) -> Ask:
    """Return a function that sends a body to an application and returns the status."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/predict", "raw_path": b"/predict", "root_path": "",
        "query_string": b"", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "headers": [(b"host", b"sonde"), (b"content-type", b"application/json")],
    }  # fmt: skip

    async def ask(body: bytes) -> int:
        sent: list[Mapping[str, Any]] = []

        async def receive() -> Mapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await application(dict(scope), receive, send)
        return int(sent[0]["status"])

    return ask


async def asked(ask: Ask, bodies: Sequence[bytes], clients: int, n: int) -> Times:
    """Return the milliseconds of a request: of the process, and of this thread."""
    left = iter(range(n))

    async def one() -> None:
        for i in left:
            status = await ask(bodies[i % len(bodies)])
            if status != 200:
                raise RuntimeError(f"expected status 200, got {status}")

    began, own = time.process_time(), time.thread_time()
    await asyncio.gather(*(one() for _ in range(clients)))
    own = time.thread_time() - own
    await asyncio.sleep(0.3)  # what is done after the answer counts too
    return 1e3 * (time.process_time() - began) / n, 1e3 * own / n


async def measured(
    folder: Path, sizes: dict[str, int], n_fit: int, clients: int, n: int, rounds: int
) -> dict[str, list[Times]]:
    """Return the times of each arm in each round."""
    model, probe = str(folder / "model"), folder / "probe.sonde"
    write_text_model(folder / "model", sizes)
    probe_of_text(model, sizes, n_fit).save(probe)
    bodies = [json.dumps({"inputs": [text]}).encode() for text in texts(2_000, 2, sizes)]
    applications = (plain(model), app(model), app(model, str(probe)))
    times: dict[str, list[Times]] = {arm: [] for arm in ARMS}
    async with AsyncExitStack() as stack:
        for application in applications:
            await stack.enter_async_context(application.router.lifespan_context(application))
        for application in applications[1:]:
            while not application.state.service.is_ready:
                await asyncio.sleep(0.05)
        asks = {arm: asking(one) for arm, one in zip(ARMS, applications, strict=True)}
        for ask in asks.values():
            await asked(ask, bodies, clients, min(n, WARM))
        for arm in itertools.chain.from_iterable([ARMS] * rounds):
            times[arm].append(await asked(asks[arm], bodies, clients, n))
    return times


def printed(times: Mapping[str, Sequence[Times]]) -> str:
    """Return the table of medians over rounds."""
    lines = ["| | a request | reading thread | plain / this |", "|---|---|---|---|"]
    for arm, each in times.items():
        whole, own = (statistics.median(pair[i] for pair in each) for i in (0, 1))
        ratios = [bare / ours for (bare, _), (ours, _) in zip(times[ARMS[0]], each, strict=True)]
        lines.append(
            f"| {arm} | {whole:.2f} ms | {own:.2f} ms | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="small",
                        help="3 blocks of 96, or 12 of 768")  # fmt: skip
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1_500, help="of each arm in each round")
    parser.add_argument("--rounds", type=int, default=7)
    typed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes, n_fit = SIZES[typed.size]
    with tempfile.TemporaryDirectory() as folder:
        print(printed(asyncio.run(measured(
            Path(folder), sizes, n_fit, typed.clients, typed.requests, typed.rounds
        ))))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
