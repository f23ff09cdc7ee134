"""The servers that are compared: a Starlette application without sonde, LitServe, and sonde.

Run as ``python -m benchmarks.serving_arms ARM PORT WIDTH PROBE``.
"""

import asyncio
import sys
from typing import Any

import torch
from torch import Tensor, nn

N_INPUTS, N_CLASSES, MOST = 64, 10, 32


def net(width: int) -> nn.Sequential:
    """Return the served net; the same weights each time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(N_INPUTS, width), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, N_CLASSES)).eval()


SITES = ["1", "3", "5", "7", "9"]
"""What the probe is fitted at: the five hidden layers."""


def answers(model: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """Return class and probability of each row."""
    with torch.inference_mode():
        most = model(x).softmax(1).max(1)
    pairs = zip(most.indices.tolist(), most.values.tolist(), strict=True)
    return [{"answer": i, "probability": p} for i, p in pairs]


def plain(width: int) -> Any:
    """Return a Starlette application that gathers what arrives while the model works."""
    from concurrent.futures import ThreadPoolExecutor

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    model, thread = net(width), ThreadPoolExecutor(1)
    waiting: list[tuple[list[float], asyncio.Future[Any]]] = []
    running = [False]

    async def work() -> None:
        while waiting:
            batch = waiting[:MOST]
            del waiting[:MOST]
            x = torch.tensor([row for row, _ in batch])
            found = await asyncio.get_running_loop().run_in_executor(thread, answers, model, x)
            for (_, future), answer in zip(batch, found, strict=True):
                future.set_result(answer)
        running[0] = False

    async def predict(request: Request) -> JSONResponse:
        futures = []
        for row in (await request.json())["inputs"]:
            future = asyncio.get_running_loop().create_future()
            waiting.append((row, future))
            futures.append(future)
        if not running[0]:
            running[0] = True
            request.app.state.task = asyncio.create_task(work())
        return JSONResponse({"answers": [await future for future in futures]})

    return Starlette(routes=[Route("/predict", predict, methods=["POST"])])


def main(arm: str, port: str, width: str, probe: str) -> None:
    """Serve one arm until killed."""
    import uvicorn

    torch.set_num_threads(1)
    if arm == "litserve":
        from benchmarks.serving_litserve import serve

        serve(int(width), int(port))
        return
    if arm == "plain":
        application = plain(int(width))
    else:
        from sonde.serving import app

        application = app(net(int(width)), probe if arm == "probe" else None)
    uvicorn.run(application, host="127.0.0.1", port=int(port), access_log=False, log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
