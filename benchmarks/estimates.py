"""Ten jobs against their estimates: the truth is a run of 10 and of 100 times the sample.

    python -m benchmarks.estimates            # the jobs
    python -m benchmarks.estimates --others   # jobs that the estimator was not changed for
    python -m benchmarks.estimates --memory   # memory and disk at 512 to 8,192 dimensions

Both clocks are processor time, so that other work on the machine does not count.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import MIB, ONE_THREAD, added_peak, run_child

os.environ.update(ONE_THREAD)

import numpy as np
import torch
from torch import nn

import sonde
from sonde.core import Stream
from sonde.core.reduction import AUTO
from sonde.findings.scan import scan_stream
from sonde.findings.settings import ScanSettings
from sonde.measure import Covariance
from sonde.run.fitting.fit import make_plan, requests_of_pass
from sonde.run.fitting.prepared import prepare
from sonde.run.passes.memory import estimate
from sonde.store import Store, write_store

TIMES = (10, 100)
WITHIN = 0.25
WIDTHS = (512, 1024, 2048, 4096, 8192)
VOCABULARY = 500
UNIT = 64
SILENT = ScanSettings(progress=False)
Job = Callable[[int, Path], tuple[str, Stream, dict[str, Any], Callable[[], Any]]]


def texts(n: int, **options: Any) -> Stream:
    """Return the states of a small text encoder on texts of 5 to 60 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512}
    net = BertModel(BertConfig(vocab_size=VOCABULARY, num_attention_heads=4, **shape)).eval()
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 60, n)
    items = [
        {"input_ids": draw.integers(5, VOCABULARY, k).tolist(), "label": i % 5}
        for i, k in enumerate(lengths)
    ]
    return sonde.read(net, items, check=False, **options)


def arrays(n: int, dim: int = 96) -> Stream:
    """Return plain rows of two sites."""
    x = torch.randn(n, 2 * dim, generator=torch.Generator().manual_seed(0))
    return Stream.of({"a": x[:, :dim], "b": x[:, dim:]}, label=torch.arange(n) % 5)


def table(n: int) -> Stream:
    """Return the states of a small net on a table."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    x = np.random.default_rng(0).normal(size=(n, 12)).astype(np.float32)
    return sonde.read(net, (x, (x[:, 0] > 0).astype(int)), check=False)


def reading(make: Callable[[int], Stream]) -> Job:
    """Return the job of writing rows."""

    def job(n: int, folder: Path) -> Any:
        stream = make(n)
        return "read", stream, {}, lambda: write_store(stream, folder / "acts")

    return job


def fit(make: Callable[[int], Stream], methods: str, **options: Any) -> Job:
    """Return the job of fitting methods."""

    def job(n: int, folder: Path) -> Any:
        stream = make(n)

        def work() -> None:
            place = folder / "probe.run"
            fitted = sonde.fit(methods, stream, directory=place, progress=False, **options)
            _ = dict(fitted)
            fitted.save(folder / "probe.sonde")

        return "fit", stream, {"methods": methods, **options}, work

    return job


def scoring(make: Callable[[int], Stream], methods: str) -> Job:
    """Return the job of scoring."""

    def job(n: int, folder: Path) -> Any:
        fitted, stream = sonde.fit(methods, make(600), progress=False), make(n)
        _ = fitted.scorers
        return (
            "score",
            stream,
            {"fitted": fitted},
            lambda: sonde.score(fitted, stream, progress=False),
        )

    return job


def stored(n: int, folder: Path) -> Any:
    """Return the job of fitting stored rows."""
    rows = Store(write_store(arrays(n), folder / "rows"))
    return fit(lambda _: rows, "covariance,uniformity")(n, folder)


def scanning(make: Callable[[int], Stream]) -> Job:
    """Return the job of a scan."""

    def job(n: int, folder: Path) -> Any:
        stream = make(n)
        return "scan", stream, {"settings": SILENT}, lambda: scan_stream(stream, settings=SILENT)

    return job


JOBS: dict[str, tuple[int, Job]] = {
    "read, texts, mean": (192, reading(texts)),
    "read, texts, tokens": (192, reading(lambda n: texts(n, reducer="tokens"))),
    "fit covariance, texts": (192, fit(texts, "covariance")),
    "fit mahalanobis and knn, texts": (192, fit(texts, "mahalanobis,knn")),
    "fit covariance, tokens": (192, fit(lambda n: texts(n, reducer="tokens"), "covariance")),
    "fit cka, arrays": (4096, fit(arrays, "cka")),
    "fit knn, arrays": (1024, fit(arrays, "knn")),
    "fit covariance and uniformity, store": (4096, stored),
    "score mahalanobis and knn, texts": (192, scoring(texts, "mahalanobis,knn")),
    "scan, table": (512, scanning(table)),
}
OTHERS: dict[str, tuple[int, Job]] = {
    "read, table": (512, reading(table)),
    "fit knn, table": (512, fit(table, "knn")),
    "fit linear_probe, arrays": (1024, fit(arrays, "linear_probe")),
    "score mahalanobis, arrays": (1024, scoring(arrays, "mahalanobis")),
    "scan, arrays": (512, scanning(arrays)),
}


def compared(
    name: str, several: Sequence[int]
) -> list[tuple[str, int, float, float, float, float, int, int]]:
    """Return estimate and truth of a job at several times its sample."""
    size, job = (JOBS | OTHERS)[name]
    lines = []
    for times in several:
        with tempfile.TemporaryDirectory() as folder:
            word, stream, options, work = job(times * size, Path(folder))
            said = sonde.estimate(word, stream, examples=size, clock=time.process_time, **options)  # type: ignore[arg-type]
            began = time.process_time()
            work()
            taken = time.process_time() - began
            disk = size_of(Path(folder) / "acts")
        figures = (said.seconds, said.low_seconds, said.high_seconds, taken)
        lines.append((name, times, *figures, said.disk_bytes if disk else 0, disk))
    return lines


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # removed while the folder is listed
            continue
    return found


def held(width: int, kind: str) -> list[float]:
    """Return said and true bytes of memory and disk for one wide job."""
    peak, method = [0], Covariance("full" if kind == "arrays" else "diag")
    with tempfile.TemporaryDirectory() as name:
        stream = wide(width, kind)
        settled = prepare(method, stream, 0, AUTO)
        wanted, _ = requests_of_pass(settled.tasks, settled.stream, settled.split)
        plan = make_plan(settled.stream, wanted, settled.split, UNIT, None)
        needed = estimate(wanted, settled.stream, plan)
        directory, done = Path(name) / "run", threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], size_of(Path(name)))

        def work() -> Any:
            fitted = sonde.fit(
                method, stream, directory=directory, unit_size=UNIT, calibrate=0, progress=False
            )
            _ = dict(fitted)
            fitted.save(Path(name) / "probe.sonde")
            return fitted

        watcher = threading.Thread(target=watch)
        watcher.start()
        taken = added_peak(work) * MIB
        done.set()
        watcher.join()
        peak[0] = max(peak[0], size_of(Path(name)))
    return [needed.total_bytes, taken, needed.disk_bytes, peak[0]]


def wide(width: int, kind: str) -> Stream:
    """Return 512 rows of a width: of plain arrays, or of two blocks of a decoder."""
    if kind == "arrays":
        rows = torch.randn(512, width, generator=torch.Generator().manual_seed(0))
        return Stream.of(rows)
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
    }
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1000}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    net = LlamaModel(LlamaConfig(**shape, **heads)).eval()
    torch.set_default_dtype(before)
    n_tokens = max(16, 2**21 // width // 8)
    items = [{"input_ids": [(i * k) % 1000 for k in range(n_tokens)]} for i in range(24)]
    stream = sonde.read(net, items, batch_size=8, reducer="mean", check=False)
    _ = stream.schema
    return stream


def main() -> int:
    """Print a table; return 1 if an estimate is further from the truth than a quarter."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimates", description=__doc__)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of jobs")
    parser.add_argument("--times", type=int, nargs="*", default=TIMES)
    typed = parser.parse_args()
    torch.set_num_threads(1)
    if typed.memory:
        print(
            "| job | width | memory said, MiB | taken | disk said, MiB | taken |\n"
            + "|---" * 6
            + "|"
        )
        for kind in ("arrays", "forward"):
            for width in WIDTHS:
                child = run_child("benchmarks.estimates:held", steady=True, width=width, kind=kind)
                print(f"| {kind} | {width} | " + " | ".join(f"{x / MIB:.0f}" for x in child) + " |")
        return 0
    print("| job | times | said, s | interval | taken, s | ratio |\n" + "|---" * 6 + "|")
    far = 0
    for i, name in enumerate(OTHERS if typed.others else JOBS):
        if typed.only and i not in typed.only:
            continue
        for _, times, said, low, high, taken, disk_said, disk in compared(name, typed.times):
            far += abs(said / taken - 1) > WITHIN
            more = f"; disk {disk_said / disk:.2f}" if disk else ""
            interval = f"{low:.2g} to {high:.2g}"
            ratio = f"{said / taken:.2f}{more}"
            print(
                f"| {name} | {times} | {said:.2g} | {interval} | {taken:.2g} | {ratio} |",
                flush=True,
            )
    return int(far > 0)


if __name__ == "__main__":
    sys.exit(main())
