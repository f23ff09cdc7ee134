"""Throughput and memory of a store in object storage, beside plain transfers of as many bytes.

``python -m benchmarks.object_budget`` writes 200 MB of rows into a bucket of moto's server and
reads them back, and does the same with plain objects of the size of the store's files through the
same client. Memory is what reading adds to the process at its peak (Linux alone).
"""

import gc
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tests.object_storage import BUCKET, s3_server, settings

from sonde.core.stream import Stream
from sonde.files.places import Place
from sonde.store import Store, write_store

DIM, MB = 1024, 10**6
SIZES = (100, 200, 400)
FILE_BYTES = 64 * 2**20


def seconds(action: Callable[[], Any]) -> float:
    """Return the seconds of an action."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def peak_mb() -> float:
    """Return the largest memory of this process since ``forget_peak``, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / MB


def forget_peak() -> float:
    """Let the peak of memory begin anew, and return the memory now, in MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def read_all(place: str, n: int) -> float:
    """Read every batch of a store and return the sum of one column."""
    return sum(float(b.rows["x"][:, 0].sum()) for b in Store(place).batches(0, n))


def plain(n_bytes: int) -> tuple[float, float]:
    """Return the seconds to write and to read objects of the size of a store's files."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plain"
        file.write_bytes(os.urandom(FILE_BYTES))
        names = [Place(f"s3://{BUCKET}/plain/{i}") for i in range(-(-n_bytes // FILE_BYTES))]
        scale = n_bytes / (len(names) * FILE_BYTES)
        write = seconds(lambda: [place.upload(file) for place in names])
        read = seconds(lambda: [sum(len(p) for _, p in q.pieces(0, FILE_BYTES)) for q in names])
    return scale * write, scale * read


def main() -> None:
    """Print the table."""
    with s3_server() as server:
        os.environ.update(settings(server))
        print(
            "| rows, MB | written, MB/s | plain | ratio | read, MB/s | plain | ratio | memory, MB |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for size in SIZES:
            n, place = size * MB // (4 * DIM), f"s3://{BUCKET}/{size}"
            stream = Stream.of({"x": torch.randn(n, DIM)})
            write = seconds(partial(write_store, stream, place))
            del stream
            before = forget_peak()
            read = seconds(partial(read_all, place, n))
            peak = peak_mb() - before
            plain_write, plain_read = plain(size * MB)
            print(
                f"| {size} | {size / write:.0f} | {size / plain_write:.0f} "
                f"| {plain_write / write:.2f} | {size / read:.0f} | {size / plain_read:.0f} "
                f"| {plain_read / read:.2f} | {peak:.0f} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
