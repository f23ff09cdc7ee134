"""``sonde serve`` in a process of its own, for tests."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from serving_case import rows

TESTS = Path(__file__).resolve().parent


def body_of(n, seed):
    return {"inputs": [x.tolist() for x in rows(n, seed)]}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A running ``sonde serve``."""

    def __init__(self, process, port, token=None):
        self.process, self.port, self.token = process, port, token

    def ask(self, path, body=None, token=None, timeout=30):
        headers = {"Content-Type": "application/json"}
        if token or self.token:
            headers["Authorization"] = f"Bearer {token or self.token}"
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@contextmanager
def running(*arguments, token=None, **variables):
    port = free_port()
    command = [sys.executable, "-m", "sonde", "serve", "serving_case:net", *map(str, arguments)]
    path = os.pathsep.join([str(TESTS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server, until, said = Server(process, port, token), time.monotonic() + 100, None
    try:
        while True:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < until, f"not ready in time: {said}"
            try:
                said = server.ask("/v2/health/ready")
                if said[0] == 200:
                    break
            except (OSError, ValueError):  # no server yet, or that of Ray without an application
                pass
            time.sleep(0.1)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
