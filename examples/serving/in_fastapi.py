"""A served model inside an application of your own: FastAPI, or any other ASGI framework.

Run it: uvicorn in_fastapi:service
"""

import os

from fastapi import FastAPI

import sonde.serving

service = FastAPI(title="my service")
service.mount(
    "/model",
    sonde.serving.app(
        os.environ.get("MODEL", "sonde:digits"),
        os.environ.get("PROBE"),
        token=os.environ.get("TOKEN"),
    ),
)


@service.get("/hello")
def hello() -> dict[str, str]:
    return {"predict": "/model/predict", "dashboard": "/model/"}
