"""The servers that are compared: a Starlette application without sonde, LitServe, and sonde.

Run as ``python -m benchmarks.serving_arms ARM PORT MODEL PROBE``; MODEL is a width or a folder.
"""

import asyncio
import sys
from typing import Any

import torch

from benchmarks.serving_models import MOST, answering, net


def plain(model: str) -> Any:
    """Return a Starlette application that gathers what arrives while the model works."""
    from concurrent.futures import ThreadPoolExecutor

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    answers, thread = answering(model), ThreadPoolExecutor(1)
    waiting: list[tuple[Any, asyncio.Future[Any]]] = []
    running = [False]

    async def work() -> None:
        while waiting:
            batch = waiting[:MOST]
            del waiting[:MOST]
            given = [one for one, _ in batch]
            found = await asyncio.get_running_loop().run_in_executor(thread, answers, given)
            for (_, future), answer in zip(batch, found, strict=True):
                future.set_result(answer)
        running[0] = False

    async def predict(request: Request) -> JSONResponse:
        futures = []
        for one in (await request.json())["inputs"]:
            future = asyncio.get_running_loop().create_future()
            waiting.append((one, future))
            futures.append(future)
        if not running[0]:
            running[0] = True
            request.app.state.task = asyncio.create_task(work())
        return JSONResponse({"answers": [await future for future in futures]})

    return Starlette(routes=[Route("/predict", predict, methods=["POST"])])


def main(arm: str, port: str, model: str, probe: str) -> None:
    """Serve one arm until killed."""
    import uvicorn

    torch.set_num_threads(1)
    if arm == "litserve":
        from benchmarks.serving_litserve import serve

        serve(model, int(port))
        return
    if arm == "plain":
        application = plain(model)
    else:
        from sonde.serving import app

        served = net(int(model)) if model.isdigit() else model
        application = app(
            served,
            probe if arm in ("probe", "exact") else None,
            batch_invariant=arm == "exact",
        )
    uvicorn.run(application, host="127.0.0.1", port=int(port), access_log=False, log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
