"""An S3 server of moto on the loopback, and a proxy before it that cuts, delays and answers 503.

The server speaks the protocol of S3 with conditional writes. The proxy plays the services that
throttle, break connections, or ignore ``If-None-Match``, and counts requests and bytes.
"""

import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

NEEDED = ("moto", "flask", "flask_cors", "obstore")
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
HOP_BY_HOP = ("transfer-encoding", "content-length", "connection", "expect")
SECRET = "wJalrXUtnFEMIsecret"
BUCKET = "rows"

Fault = Callable[[str, str, int], str | float | None]
"""``fault(method, path, n)`` of request n: None, "503", "cut", "strip" or seconds to wait."""


def require_packages() -> None:
    """Skip the test if the server or the client is not installed."""
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}: run `make install` again")


def settings(endpoint: str) -> dict[str, str]:
    """Return the environment by which every client finds the server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """Start the server in a process of its own, with one bucket; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        _request(port, "PUT", f"/{BUCKET}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError("the S3 server ended at its start")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the S3 server did not start in 30 s")


def _request(port: int, method: str, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    unsigned = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/"}
    connection.request(method, path, headers=unsigned)
    connection.getresponse().read()
    connection.close()


@dataclass
class Proxy:
    """Requests between a client and the server, with planned faults.

    Parameters
    ----------
    upstream : str
        Address of the server.
    """

    upstream: str
    fault: Fault = lambda method, path, n: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    n_bytes_sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""

    def reset(self, fault: Fault = lambda method, path, n: None) -> None:
        """Forget what was counted, and take other faults."""
        with self.lock:
            self.requests.clear()
            self.n_bytes_sent, self.fault = 0, fault


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """Start a proxy before a server."""
    proxy = Proxy(upstream)

    class Handler(_Handler):
        pass

    Handler.proxy = proxy
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _relay(self) -> None:
        with self.proxy.lock:
            self.proxy.requests.append((self.command, self.path))
            planned = self.proxy.fault(self.command, self.path, len(self.proxy.requests))
        body = self._body()
        if planned == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if planned == "503":
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        if isinstance(planned, float):
            time.sleep(planned)
        sent = dict(self.headers.items())
        if planned == "strip":
            sent = {k: v for k, v in sent.items() if k.lower() != "if-none-match"}
        self._answer(*_ask(self.proxy.upstream, self.command, self.path, body, sent))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while n_bytes := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            with self.proxy.lock:
                self.proxy.n_bytes_sent += len(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _relay


def _ask(
    upstream: str, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
    try:
        sent = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}
        connection.request(method, path, body, {**sent, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()
