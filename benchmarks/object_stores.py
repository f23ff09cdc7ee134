"""Compare client libraries of object storage: promises, speed and weight.

Needs obstore, s3fs and moto beside the environment of development; run it as
``python -m benchmarks.object_stores``. The server is moto's on the loopback, so the times compare
clients and say nothing of a real service.
"""

import importlib
import importlib.metadata
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from tests.object_storage import BUCKET, Proxy, proxied, s3_server, settings

MIB = 2**20
N_BYTES, RANGED_BYTES, N_RANGES, ROW = 64 * MIB, 4 * MIB, 100, 3072
REPEATS = 3


class Client(Protocol):
    """What sonde asks of a library."""

    packages: ClassVar[tuple[str, ...]]
    load: ClassVar[str]

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        ...

    def create(self, name: str, content: bytes) -> None:
        """Write an object unless it exists."""
        ...

    def get(self, name: str) -> Any:
        """Return an object."""
        ...

    def ranges(self, name: str, starts: list[int]) -> list[Any]:
        """Return ranges of an object, each of ``ROW`` bytes."""
        ...


class Obstore:
    """obstore: bindings of the Rust crate object_store."""

    packages: ClassVar[tuple[str, ...]] = ("obstore",)
    load: ClassVar[str] = "import obstore"

    def __init__(self) -> None:
        import obstore
        from obstore.store import S3Store

        self._library, self._store = obstore, S3Store(BUCKET)

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        self._library.put(self._store, name, content, chunk_size=8 * MIB)

    def create(self, name: str, content: bytes) -> None:
        """Write an object unless it exists."""
        self._library.put(self._store, name, content, mode="create")

    def get(self, name: str) -> Any:
        """Return an object."""
        return self._library.get(self._store, name).bytes()

    def ranges(self, name: str, starts: list[int]) -> list[Any]:
        """Return ranges of an object, each of ``ROW`` bytes."""
        ends = [start + ROW for start in starts]
        return self._library.get_ranges(self._store, name, starts=starts, ends=ends, coalesce=ROW)


class S3fs:
    """s3fs on aiobotocore, through fsspec."""

    packages: ClassVar[tuple[str, ...]] = (
        "s3fs",
        "fsspec",
        "aiobotocore",
        "botocore",
        "aiohttp",
        "wrapt",
        "jmespath",
    )
    load: ClassVar[str] = "import s3fs"

    def __init__(self) -> None:
        self._files = importlib.import_module("s3fs").S3FileSystem(
            endpoint_url=os.environ["AWS_ENDPOINT_URL"]
        )

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        self._files.pipe_file(f"{BUCKET}/{name}", content)

    def create(self, name: str, content: bytes) -> None:
        """Write an object unless it exists."""
        self._files.pipe_file(f"{BUCKET}/{name}", content, mode="create")

    def get(self, name: str) -> Any:
        """Return an object."""
        return self._files.cat_file(f"{BUCKET}/{name}")

    def ranges(self, name: str, starts: list[int]) -> list[Any]:
        """Return ranges of an object, each of ``ROW`` bytes."""
        paths = [f"{BUCKET}/{name}"] * len(starts)
        return self._files.cat_ranges(paths, starts, [start + ROW for start in starts])


class Arrow:
    """pyarrow.fs, which sonde installs anyway."""

    packages: ClassVar[tuple[str, ...]] = ("pyarrow",)
    load: ClassVar[str] = "import pyarrow.fs"

    def __init__(self) -> None:
        from pyarrow.fs import S3FileSystem

        self._files = S3FileSystem(
            endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
            scheme="http",
        )

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        with self._files.open_output_stream(f"{BUCKET}/{name}") as file:
            file.write(content)

    def create(self, name: str, content: bytes) -> None:
        """Write an object unless it exists."""
        told = {"If-None-Match": "*"}
        with self._files.open_output_stream(f"{BUCKET}/{name}", metadata=told) as file:
            file.write(content)

    def get(self, name: str) -> Any:
        """Return an object."""
        with self._files.open_input_file(f"{BUCKET}/{name}") as file:
            return file.read()

    def ranges(self, name: str, starts: list[int]) -> list[Any]:
        """Return ranges of an object, each of ``ROW`` bytes."""
        with self._files.open_input_file(f"{BUCKET}/{name}") as file:
            return [file.read_at(ROW, start) for start in starts]


def seconds(action: Callable[[], Any]) -> float:
    """Return the median seconds of an action."""
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def creates_once(client: Client, name: str) -> str:
    """Return whether a second conditional write of one name is refused, and by which error."""
    try:
        client.create(name, b"first")
    except Exception as error:
        return f"no conditional write ({type(error).__name__})"
    try:
        client.create(name, b"other")
    except Exception as error:
        return f"refused ({type(error).__name__})"
    return f"ignored, object is now {bytes(client.get(name)).decode()!r}"


def survives(client: Client, proxy: Proxy, fault: str) -> str:
    """Return what a client does if the first two requests fail."""
    proxy.reset(lambda method, path, n: fault if n <= 2 else None)
    begun = time.perf_counter()
    try:
        assert bytes(client.get("small")) == b"x" * 1000
        said = f"read after {time.perf_counter() - begun:.1f} s"
    except Exception as error:
        said = f"raised {type(error).__name__}"
    proxy.reset()
    return said


def weight(client: Client) -> str:
    """Return the installed size of a library's packages, and the seconds of its import."""
    files = [f for p in client.packages for f in importlib.metadata.files(p) or ()]
    size = sum(f.size or 0 for f in files) / MIB
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", client.load], check=True)
    empty = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    spent = max(empty - begun - (time.perf_counter() - empty), 0.0)
    return f"{size:.0f} MB in {len(client.packages)} packages, import {spent:.2f} s"


def licence(client: Client) -> str:
    """Return the licence that the package states."""
    told: Any = importlib.metadata.metadata(client.packages[0])
    classes = [c for c in told.get_all("Classifier") or () if c.startswith("License")]
    named = told.get("License-Expression") or told.get("License") or "".join(classes) or "?"
    return named.splitlines()[0].rpartition("::")[2].strip()[:20]


def measure(kind: Callable[[], Client], server: str, proxy: Proxy) -> dict[str, str]:
    """Return the row of one library: times at the server itself, counts and faults at the proxy."""
    os.environ.update(settings(server))
    client = kind()
    content = random.Random(0).randbytes(N_BYTES)
    starts = sorted(random.Random(1).sample(range(0, RANGED_BYTES - ROW, ROW), N_RANGES))
    try:
        client.put("small", b"x" * 1000)
        client.put("rows", content[:RANGED_BYTES])
        put = f"{N_BYTES / MIB / seconds(lambda: client.put('large', content)):.0f}"
    except OSError as error:  # the objects of the client before are there
        put = f"raised {type(error).__name__} in CompleteMultipartUpload"
    get = seconds(lambda: client.get("large"))
    ranges = seconds(lambda: client.ranges("rows", starts))
    once = creates_once(client, f"once-{kind.__name__}")
    os.environ.update(settings(proxy.address))
    client = kind()
    proxy.reset()
    found = client.ranges("rows", starts)
    assert [bytes(x) for x in found] == [content[s : s + ROW] for s in starts]
    moved = proxy.n_bytes_sent / (N_RANGES * ROW)
    return {
        "second conditional write": once,
        "64 MiB written, MiB/s": put,
        "read, MiB/s": f"{N_BYTES / MIB / get:.0f}",
        f"{N_RANGES} ranges of {ROW} bytes, s": f"{ranges:.2f}",
        "bytes moved for each asked": f"{moved:.2f}",
        "503 twice": survives(client, proxy, "503"),
        "connection cut twice": survives(client, proxy, "cut"),
        "weight": weight(client),
        "licence": licence(client),
    }


def main() -> None:
    """Print the table."""
    with s3_server() as server, proxied(server) as proxy:
        rows = {kind.__name__: measure(kind, server, proxy) for kind in (Obstore, S3fs, Arrow)}
    names = list(next(iter(rows.values())))
    print("| | " + " | ".join(rows) + " |\n|" + "---|" * (len(rows) + 1))
    for name in names:
        print(f"| {name} | " + " | ".join(row[name] for row in rows.values()) + " |")


if __name__ == "__main__":
    main()
