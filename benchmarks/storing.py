"""Rows to disk and back against a plain file of the same bytes, and against the plain forward.

These arms wait for the disk and work on two threads, so their time is that of a clock on the wall.
"""

import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.child import resident, run_child
from benchmarks.nets import Tokens, encoder, forward_of, transformer
from benchmarks.protocol import AGAIN, PLAIN, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.batch import Batch
from sonde.core.stream import Stream
from sonde.engine.derived import DerivedStream
from sonde.store import Store, write_store
from sonde.tap import live_stream

WRITE_BUDGET, READ_BUDGET, OVERLAP_BUDGET = 1 / 0.8, 1.0, 1.15
TAKE_BUDGET, MEMORY_BUDGET = 50.0, 1.05
STORED = "store"
SITES = 4


def storing_rows(size: Size) -> list[Row]:
    """Return every figure about stores."""
    rows = disk_rows(size)
    return [*rows, *take_rows(size), *overlap_rows(size), *memory_rows(size)]


def on_the_wall(
    arms: Mapping[str, Callable[[], object]], rounds: int, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Return seconds of every arm in every round; the order turns each round."""
    names = list(arms)
    for name in names * warm_ups:
        arms[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            arms[name]()
            taken[name].append(time.perf_counter() - began)
    return taken


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder on the disk of temporary files, and remove it."""
    made = Path(tempfile.mkdtemp(prefix="sonde-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Made(DerivedStream):
    """Rows in memory that are named, not hashed, as those of a model are."""

    def __init__(self, n: int, dim: int, sites: int = SITES) -> None:
        generator = torch.Generator().manual_seed(0)
        found = {f"s{k}": torch.randn(n, dim, generator=generator) for k in range(sites)}
        self.rows = found
        self.inner = Stream.of(found, ids=[f"{i:08d}" for i in range(n)])
        self.shape = (n, dim, sites)
        _ = self.inner.group_keys[0], next(iter(self.inner)).occurrence

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the rows of a unit."""
        return self.inner.batches(start, stop)

    def identity(self) -> dict[str, Any]:
        """Return what names the rows."""
        return {"made": list(self.shape)}


def disk_rows(size: Size) -> list[Row]:
    """Time to write and to read a store against a plain file of the same rows with fsync."""
    n, dim = size.pick((16_384, 768), (1024, 32))
    source = Made(n, dim)
    what = f"{SITES} sites of {n} x {dim}"
    number = itertools.count()
    with folder() as place:
        wrote = on_the_wall(
            {
                PLAIN: lambda: write_plain(source, place / f"plain-{next(number)}"),
                AGAIN: lambda: write_plain(source, place / f"plain-{next(number)}"),
                STORED: lambda: write_store(source, place / f"acts-{next(number)}"),
            },
            size.rounds,
        )
        store = Store(write_store(source, place / "acts"))
        write_plain(source, place / "plain")
        read = on_the_wall(
            {
                PLAIN: lambda: read_plain(place / "plain", dim),
                AGAIN: lambda: read_plain(place / "plain", dim),
                STORED: lambda: read_store(store),
            },
            size.rounds,
        )
        n_mb = sum(x.nbytes for x in source.rows.values()) / 1e6
        share = store.n_bytes / 1e6 / n_mb
    return [
        _row("write", what, wrote, WRITE_BUDGET, f"{n_mb:.0f} MB, {share:.3f} of it on disk"),
        _row("read and sum", what, read, READ_BUDGET, f"{n_mb:.0f} MB"),
    ]


def _row(what: str, of: str, taken: dict[str, list[float]], budget: float, note: str) -> Row:
    ratio = ratio_of(taken, STORED)
    plain = statistics.median(taken[PLAIN])
    return Row(
        "store",
        f"store, {what} against a plain file with fsync, {of}",
        ratio.median,
        budget=budget,
        spread=ratio.spread,
        rounds=ratio.rounds,
        note=f"plain {plain:.3f} s, {ratio.noise}; {note}",
    )


def write_plain(source: Made, path: Path) -> None:
    """Write the rows one after the other, with fsync."""
    with path.open("wb") as file:
        for x in source.rows.values():
            x.numpy().tofile(file)
        file.flush()
        os.fsync(file.fileno())


def read_plain(path: Path, dim: int) -> float:
    """Read a plain file and add up what is in it."""
    x = torch.from_numpy(np.fromfile(path, dtype=np.float32)).reshape(-1, dim)
    return float(x.sum())


def read_store(store: Store) -> float:
    """Read every batch of a store and add up what is in it."""
    return sum(float(x.sum()) for batch in store for x in batch.rows.values())


def take_rows(size: Size) -> list[Row]:
    """Time of a random take of many rows against that of one."""
    n, dim, many = size.pick((1_000_000, 64, 1000), (20_000, 16, 100))
    with folder() as place:
        store = Store(write_store(Made(n, dim, 1), place / "acts"))
        rng = np.random.default_rng(0)
        store.take(np.arange(n)[:: max(1, n // 10_000)])
        taken = on_the_wall(
            {
                PLAIN: lambda: store.take(rng.integers(0, n, 1)),
                AGAIN: lambda: store.take(rng.integers(0, n, 1)),
                STORED: lambda: store.take(rng.integers(0, n, many)),
            },
            25 * size.rounds,
            warm_ups=5,
        )
        n_files = len(list((place / "acts" / "rows" / "examples").iterdir()))
    ratio = statistics.median(taken[STORED]) / statistics.median(taken[PLAIN])
    one = 1e6 * statistics.median(taken[PLAIN])
    return [
        Row(
            "store",
            f"store, random take of {many} rows of {n} x {dim} against one row",
            ratio,
            budget=TAKE_BUDGET,
            spread=ratio_of(taken, STORED).spread,
            rounds=len(taken[PLAIN]),
            note=f"one row {one:.0f} us, {n_files} files",
        )
    ]


def overlap_rows(size: Size) -> list[Row]:
    """Time of the forward with rows on their way to disk against the plain forward."""
    depth, width, n, length, per_batch = size.pick((12, 768, 96, 64, 16), (2, 64, 32, 16, 8))
    module, rounds = transformer(depth, width), min(3, size.rounds)
    inputs = Tokens(n, length, per_batch)
    sites = [f"h.{(k + 1) * depth // SITES - 1}" for k in range(SITES)]
    sites = sites if depth >= SITES else ["h.0", "h.1"]  # the last block runs in both arms
    stream = live_stream(encoder(module), inputs, sites, "tokens", logits=False)
    _ = inputs.group_keys, stream.identity(), stream.schema
    forwards = [forward_of(module, **b.kwargs) for b in inputs.batches(0, n)]

    def plain() -> None:
        for forward in forwards:
            forward()

    with folder() as place:
        taken = on_the_wall(
            {
                PLAIN: plain,
                AGAIN: plain,
                STORED: lambda: write_store(stream, place / "acts", fresh=True),
            },
            rounds,
            warm_ups=0 if size.tiny else 1,
        )
        n_mb = Store(place / "acts").n_bytes / 1e6
    ratio = ratio_of(taken, STORED)
    return [
        Row(
            "store",
            f"store, forward of {depth} x {width} with tokens of {len(sites)} sites to disk",
            ratio.median,
            budget=OVERLAP_BUDGET,
            spread=ratio.spread,
            rounds=ratio.rounds,
            note=f"{n} texts of {length}, plain {statistics.median(taken[PLAIN]):.1f} s, "
            f"{n_mb:.0f} MB; {ratio.noise}",
        )
    ]


def memory_rows(size: Size) -> list[Row]:
    """Peak memory of writing and reading few and four times as many rows, of several files."""
    few, many = size.pick((8_000, 32_000), (128, 512))
    depth, width = size.pick((2, 256), (2, 64))
    peaks: dict[str, list[float]] = {"write": [], "read": []}
    holes = []
    for n in (few, many):
        with folder() as name:
            place = str(name)
            write = "benchmarks.storing:peak_of_write"
            shape = {"place": place, "depth": depth, "width": width, "n": n}
            peaks["write"].append(run_child(write, steady=True, **shape))
            read = "benchmarks.storing:peak_of_read"
            peaks["read"].append(run_child(read, steady=True, place=place))
        with folder() as name:
            holes.append(run_child(write, **{**shape, "place": str(name)}))
    said = {
        "write": f"; {holes[0]:.0f} and {holes[1]:.0f} with the holes that the allocator keeps",
        "read": "",
    }
    return [
        Row(
            "store",
            f"store, {what}, peak memory of {many} against {few} texts of 16 tokens",
            big / small,
            budget=MEMORY_BUDGET,
            note=f"{small:.0f} and {big:.0f} MiB, Python and torch included{said[what]}",
        )
        for what, (small, big) in peaks.items()
    ]


def peak_of_write(place: str, depth: int, width: int, n: int) -> float:
    """Return the peak memory in MiB of this process after it wrote a store."""
    stream = live_stream(
        encoder(transformer(depth, width)), Tokens(n, 16, 64), "auto", "tokens", logits=False
    )
    with torch.no_grad():
        write_store(stream, Path(place) / "acts")
    return resident()


def peak_of_read(place: str) -> float:
    """Return the peak memory in MiB of this process after it read a store."""
    read_store(Store(Path(place) / "acts"))
    return resident()
