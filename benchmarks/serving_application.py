"""Ask an application of sonde serve in this process, without sockets."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.serving_bodies import JSON

Ask = Callable[[bytes], Awaitable[tuple[int, Any]]]
TOGETHER = 64


def asking(application: Any, path: str = "/predict", kind: str = JSON, client: str = "") -> Ask:
    """Return a function that asks an application: a body gives its status and its answer.

    Parameters
    ----------
    application : Starlette
    path : str, default="/predict"
    kind : str, default=JSON
        Content type of the body.
    client : str, default=""
        Name of the caller, in the header ``X-Client``.
    """
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"sonde"),
            (b"content-type", kind.encode("latin-1")),
            *([(b"x-client", client.encode())] if client else []),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def ask(body: bytes) -> tuple[int, Any]:
        sent: list[Any] = []
        bodies = [body]

        async def receive() -> dict[str, Any]:
            if not bodies:  # the client stays until it has its answer
                await asyncio.Event().wait()
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await application(dict(scope), receive, send)
        content = b"".join(one.get("body", b"") for one in sent[1:])
        return sent[0]["status"], json.loads(content)

    return ask


async def together(ask: Ask, inputs: Sequence[Any]) -> list[Any]:
    """Return the answer to each input in their order, asked by many clients, one in a request."""
    left, answers = iter(enumerate(inputs)), dict[int, Any]()

    async def one() -> None:
        for i, given in left:
            _, content = await ask(json.dumps({"inputs": [given]}).encode())
            (answers[i],) = content["answers"]

    await asyncio.gather(*(one() for _ in range(TOGETHER)))
    return [answers[i] for i in range(len(inputs))]
