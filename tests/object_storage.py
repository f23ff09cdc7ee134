"""Servers on the loopback, and a proxy before them that cuts, delays and answers 503.

The S3 servers of moto and of SeaweedFS have conditional writes; that of rclone has none. Azurite is
Microsoft's emulator of Azure blobs, an npm package: ``npm install -g azurite``. The proxy
plays the services that throttle, break connections, or ignore ``If-None-Match``, and counts
requests and bytes.
"""

import base64
import hmac
import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
AZURITE = "azurite"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = base64.b64encode(b"a key of the emulator").decode()

Fault = Callable[[str, str, int], str | float | None]
"""``fault(method, path, n)`` of request n: None, "503", "cut", "strip" or seconds to wait."""


def require_packages() -> None:
    """Skip the test if the server or the client is not installed."""
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}: run `make install` again")


def scheme_of(name: str) -> str:
    """Return the scheme of the addresses of a server."""
    return "az" if name == AZURITE else "s3"


def settings(endpoint: str) -> dict[str, str]:
    """Return the environment by which every client finds the server."""
    return {
        "AZURE_STORAGE_ENDPOINT": f"{endpoint}/{ACCOUNT}",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
        "AZURE_ALLOW_HTTP": "true",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def s3_server(name: str = "moto") -> Iterator[str]:
    """Start a server of ``SERVERS`` in a process of its own, with one bucket; yield its address."""
    ports = _free_ports(9)
    quiet = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            SERVERS[name](ports, folder),
            env={
                **quiet,
                "PYTHONWARNINGS": "ignore",
                "AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(ports[0], process, _make_container if name == AZURITE else _make_bucket)
            yield f"http://127.0.0.1:{ports[0]}"
        finally:
            process.kill()
            process.wait()


def _moto(ports: list[int], folder: str) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])]


def _seaweedfs(ports: list[int], folder: str) -> list[str]:
    names = ("s3.port", "master.port", "volume.port", "filer.port")
    numbered = [
        f"-{name}{kind}={port}"
        for kind, several in (("", ports[:4]), (".grpc", ports[4:8]))
        for name, port in zip(names, several, strict=True)
    ]
    bound = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    room = [f"-dir={folder}", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    return [_program("weed"), "server", "-s3", "-filer", *bound, *room, *numbered]


def _rclone(ports: list[int], folder: str) -> list[str]:
    (Path(folder) / BUCKET).mkdir()
    at = ["--addr", f"127.0.0.1:{ports[0]}", "--config", ""]
    return [_program("rclone"), "serve", "s3", *at, folder]


def _azurite(ports: list[int], folder: str) -> list[str]:
    at = ["--blobHost", "127.0.0.1", "--blobPort", str(ports[0]), "--location", folder]
    quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    return [_program("azurite-blob", "npm install -g azurite"), *at, *quiet]


def _program(name: str, install: str = "make install") -> str:
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    path = shutil.which(name, path=os.pathsep.join(places))
    if path is None:
        pytest.skip(f"needs the program {name}: run `{install}`")
    return path


SERVERS: dict[str, Callable[[list[int], str], list[str]]] = {
    "moto": _moto,
    "seaweedfs": _seaweedfs,
    "rclone": _rclone,
    AZURITE: _azurite,
}
"""Command of each server, from free ports and an empty folder; clients use the first port."""


def _free_ports(n: int) -> list[int]:
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _wait_for(
    port: int, process: subprocess.Popen[bytes], make_bucket: Callable[[int], bool]
) -> None:
    """Wait until the server has a bucket: its port opens before its storage does."""
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError("the server ended at its start")
        with suppress(OSError):
            if make_bucket(port):
                return
        time.sleep(0.05)
    raise RuntimeError("the server did not start in 30 s")


def _make_bucket(port: int) -> bool:
    """Return whether the server takes an object."""
    _request(port, "PUT", f"/{BUCKET}")
    if _request(port, "PUT", f"/{BUCKET}/first") != 200:
        return False
    _request(port, "DELETE", f"/{BUCKET}/first")
    return True


def _make_container(port: int) -> bool:
    """Return whether the emulator made a container; clients of blobs do not make them."""
    path = f"/{ACCOUNT}/{BUCKET}"
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    text = "PUT" + "\n" * 12 + signed + f"/{ACCOUNT}{path}\nrestype:container"
    digest = hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    return _request(port, "PUT", f"{path}?restype=container", headers) == 201


UNSIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/"}


def _request(port: int, method: str, path: str, headers: Mapping[str, str] = UNSIGNED) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, headers={**headers, "Content-Length": "0"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


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
        lengths = [value for name, value in headers.items() if name.lower() == "content-length"]
        length = [*lengths, "0"][0] if self.command == "HEAD" else str(len(body))
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
