"""A small net with a calibrated probe, served: what the tests of ``sonde serve`` share."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from starlette.testclient import TestClient

import sonde
from models import mlp
from sonde.detect import KNN, Mahalanobis
from sonde.serving import app

DIM = 5


def rows(n, seed, shift=0.0):
    """Rows of a table of five numbers; ``shift`` moves all of them."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(n, DIM, generator=generator) + shift)


def net():
    return mlp(DIM, 7, 3)


def probe(model, n=300):
    """Detectors of two kinds at two layers, calibrated on rows of their own."""
    methods = [Mahalanobis(), KNN(k=4)]
    stream = sonde.read(model, rows(n, 0), sites=["1", "2"])
    fitted = sonde.fit(methods, stream, calibrate=0, progress=False)
    return sonde.calibrate(fitted, model, rows(n, 1), progress=False)


@contextmanager
def served(model, fitted=None, **options):
    """A client of the real application, ready to answer."""
    with TestClient(app(model, fitted, **options)) as client:
        wait_until_ready(client)
        yield client


def wait_until_ready(client, seconds=60.0):
    until = time.monotonic() + seconds
    while client.get("/v2/health/ready").status_code != 200:
        assert time.monotonic() < until, "the server was not ready in time"
        time.sleep(0.02)


def asked(client, items, **options):
    """The answers to some rows."""
    found = client.post("/predict", json={"inputs": [x.tolist() for x in items]}, **options)
    assert found.status_code == 200, found.text
    return found.json()["answers"]


def run_apart(coroutine):
    """Run a coroutine in a thread of its own: browsers of other tests keep a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def unloadable():
    """A factory that fails."""
    raise RuntimeError("the factory has no file of weights")
