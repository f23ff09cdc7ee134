"""What sonde serve promises, counted: alarm rate, changes, answers, malformed bodies, memory.

The application runs in this process without sockets.
"""

import asyncio
import base64
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.rows import Row
from benchmarks.serving import probe_of
from benchmarks.serving_application import Ask, asking, together
from benchmarks.serving_bodies import FORM, JSON, Sent, form, hostile, picture
from benchmarks.serving_models import net, rows
from benchmarks.serving_troubles import trouble_rows
from benchmarks.size import Size
from sonde.serving import Limits, app

ALPHA, MEMORY = 0.05, 1.05
MALFORMED = (b"", b"{", b"[]", b'{"inputs": [[NaN]]}', b'{"inputs": "x"}', b"\xff", b"[" * 4000)
NAME, REFUSED = "serve-promise", (400, 404, 413, 415)


def promise_rows(size: Size) -> list[Row]:
    """Return everything that is promised and can be counted."""
    return asyncio.run(_promises(size.pick(256, 16), size.pick(10_000, 300), size))


async def _promises(width: int, n: int, size: Size) -> list[Row]:
    n_known = size.pick(4000, 400)
    limits = Limits(queue=100_000)
    made = app(net(width), probe_of(width, n_known), limits=limits, batch_invariant=True)
    # half of the known rows calibrates the fused score; their number limits the rate's accuracy
    ask, spread = asking(made), 3 * (ALPHA * (1 - ALPHA) * (1 / n + 2 / n_known)) ** 0.5
    async with made.router.lifespan_context(made):
        while not made.state.service.is_ready:
            await asyncio.sleep(0.05)
        rate = await _alarm_rate(ask, n)
        told = await _change(ask, made.state.service, n // 2)
        most = size.pick(120.0, 5.0)
        n_asked, wrong = await _exchanged(ask, size.pick(100_000, 200), most)
        bad = await _malformed(ask, size.pick(10_000, 20))
    n_hostile = size.pick(10_000, 100)
    codes = await _hostile(n_hostile)
    troubles = await trouble_rows(size)
    small, seconds = net(16), size.pick(180.0, 20.0)
    memory, n_ran = await _memory(small, probe_of(16, 400), size.pick(200_000, 600), seconds)
    usual = f"alarm rate of {n:,} inputs like those that calibrated"
    return [
        Row(NAME, usual, rate, "", ALPHA, spread),
        Row(NAME, f"inputs until a change at request {n // 2:,} is told", told, "inputs", 200),
        Row(NAME, f"{n_asked:,} concurrent requests: answers of another", wrong, "answers", 0),
        Row(NAME, "malformed bodies without a sentence", bad, "bodies", 0),
        Row(
            NAME,
            f"{n_hostile:,} hostile bodies of each of five kinds of input: status 500, no "
            "sentence, or other answers afterwards",
            sum(codes.values()),
            "bodies",
            0,
        ),
        *troubles,
        Row(NAME, f"memory after {n_ran:,} requests / after a tenth", memory, budget=MEMORY),
    ]


def _body(inputs: Sequence[Any]) -> bytes:
    return json.dumps({"inputs": inputs}).encode()


async def _alarm_rate(ask: Ask, n: int) -> float:
    """Return the alarm rate of ``n`` requests, each of a usual input."""
    found = await together(ask, rows(n, 10))
    return sum(bool(one["alarm"]) for one in found) / n


async def _change(ask: Ask, service: Any, n: int) -> float:
    """Return how many moved inputs it takes to tell, after ``n`` more usual ones."""
    await together(ask, rows(n, 11))
    service._watcher.submit(lambda: None).result()
    first, before = service.changes.n, len(service.changes.alarms)
    for row in rows(400, 12, shift=1.5):
        await ask(_body([row]))
        service._watcher.submit(lambda: None).result()
        if len(service.changes.alarms) > before:
            return [*service.changes.alarms][before].told - first + 1.0
    return float("inf")


async def _exchanged(ask: Ask, n: int, seconds: float) -> tuple[int, int]:
    """Return how many requests ran, and how many got the answer to another input or an old id."""
    given = rows(97, 5)
    bodies = [_body([row]) for row in given]
    wanted = (await ask(_body(given)))[1]["answers"]
    ids: Counter[str] = Counter()
    n_wrong, n_ran, until = 0, 0, time.monotonic() + seconds
    for first in range(0, n, 1000):
        if time.monotonic() > until:
            break
        which = [i % len(given) for i in range(first, min(n, first + 1000))]
        for i, (_, found) in zip(
            which, await asyncio.gather(*(ask(bodies[i]) for i in which)), strict=True
        ):
            (answer,) = found["answers"]
            n_wrong += answer["p"] != wanted[i]["p"] or answer["score"] != wanted[i]["score"]
            ids[answer["id"]] += 1
        n_ran += len(which)
    return n_ran, n_wrong + sum(many - 1 for many in ids.values())


async def _malformed(ask: Ask, n: int) -> int:
    """Return how many malformed bodies, ``n`` of each kind, got no 400 with a sentence."""
    n_wrong = 0
    for body in MALFORMED:
        for _ in range(n):
            status, found = await ask(body)
            n_wrong += status != 400 or not found["error"].endswith(".")
    return n_wrong


def _kinds() -> list[tuple[Any, list[Sent]]]:
    """Return an application for each kind of input, with good requests."""
    table, pictures = [[1, 2.5, 0], [0.5, 0, 1]], [picture(seed) for seed in range(4)]
    coded = [base64.b64encode(one).decode() for one in pictures]
    texts = ["def f(x):", "import os"]
    named = [{"ids": [1, 2], "x": [1, 2, 3.5]}]
    each = [
        (app(net(16)), "Sequential", rows(2, 4), [_tensor("x", "FP32", rows(2, 4))]),
        (app(nn.Linear(3, 2), number_columns="a,b,c"), "Linear", table,
         [_tensor("x", "FP64", table)]),
        (app(Joined()), "Joined", named, [_tensor("ids", "INT64", [[1, 2]]),
                                          _tensor("x", "FP32", [[1, 2, 3.5]])]),
        (app("sonde:digits", keep_inputs=5), "sonde-digits", [{"b64": one} for one in coded],
         [_tensor("x", "BYTES", coded)]),
        (app("sonde:stdlib"), "sonde-stdlib", texts, [_tensor("x", "BYTES", texts)]),
    ]  # fmt: skip
    told = Sent("/feedback", JSON, json.dumps({"feedback": [{"id": "a", "truth": "7"}]}).encode())
    found: list[tuple[Any, list[Sent]]] = []
    for made, name, inputs, tensors in each:
        body = json.dumps({"id": "a", "inputs": tensors}).encode()
        good = [Sent("/predict", JSON, _body(inputs)), told]
        good += [Sent(f"/v2/models/{name}/infer", JSON, body)]
        good += [Sent("/predict", FORM, form(pictures))] if name == "sonde-digits" else []
        found.append((made, good))
    return found


def _tensor(name: str, kind: str, data: Sequence[Any]) -> dict[str, Any]:
    shape = [len(data), *([] if kind == "BYTES" else [len(data[0])])]
    return {"name": name, "datatype": kind, "shape": shape, "data": list(data)}


class Joined(nn.Module):
    """Reads ids and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.numbers = nn.Embedding(9, 4), nn.Linear(3, 4)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.tokens(ids).mean(1) + self.numbers(x)


async def _hostile(n: int) -> Counter[str]:
    """Return the faults of each application under ``n`` hostile bodies."""
    faults: Counter[str] = Counter()
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    for made, good in _kinds():
        async with made.router.lifespan_context(made):
            while not made.state.service.is_ready:
                await asyncio.sleep(0.05)
            before = [await _plain_answer(made, one) for one in good]
            for one in hostile(good, n, seed=7):
                status, found = await asking(made, one.path, one.kind)(one.body)
                fine = status == 200 or (status in REFUSED and found["error"].endswith("."))
                faults[f"{one.path} {status}"] += not fine
            faults["afterwards"] += before != [await _plain_answer(made, one) for one in good]
    return faults


async def _plain_answer(made: Any, one: Sent) -> tuple[int, Any]:
    """Return the status and the answers, without ids."""
    status, found = await asking(made, one.path, one.kind)(one.body)
    answers = [(each["answer"], each["probability"]) for each in found.get("answers", ())]
    return status, answers or [each["data"] for each in found.get("outputs", ())]


async def _memory(model: Any, probe: Any, n: int, seconds: float) -> tuple[float, int]:
    """Return the resident memory after ``n`` requests over that after a tenth, and the number."""
    made = app(model, probe)
    ask, bodies = asking(made), [_body([row]) for row in rows(64, 6)]
    sizes, until = list[int](), time.monotonic() + seconds
    async with made.router.lifespan_context(made):
        while not made.state.service.is_ready:
            await asyncio.sleep(0.05)
        n_ran = 0
        while n_ran < n and time.monotonic() < until:
            await asyncio.gather(*(ask(body) for body in bodies))
            n_ran += len(bodies)
            sizes.append(_resident())
    return sizes[-1] / sizes[len(sizes) // 10], n_ran


def _resident() -> int:
    found = Path("/proc/self/statm").read_text().split()
    return int(found[1])
