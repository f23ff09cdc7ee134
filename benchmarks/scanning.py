"""What a scan costs beyond the forwards that it needs.

The plain forwards of the same batches run between the scan's own, every fourth batch twice and once
more with bare hooks, so all arms see the same machine; their time is taken off the scan's.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.child import resident, run_child
from benchmarks.nets import Tokens, bare_hooks, encoder, forward_of, transformer
from benchmarks.protocol import ratios, spread_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.inputs import InputBatch
from sonde.findings import scan as scanning
from sonde.findings.document import document
from sonde.findings.settings import ScanSettings
from sonde.tap import live_stream

TIME_BUDGET, BARE_BUDGET, MEMORY_BUDGET = 1.15, 6.0, 1.05
FURTHER = ("tokens", "patches")
EVERY = 4


@dataclass
class Clock:
    """Process time of a scan in parts; ``plain`` has one entry for each batch.

    ``again`` has one for every fourth, ``bare`` one of it with hooks that take the mean of every
    block, and ``paired`` holds the plain times of these.
    """

    plain: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    paired: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    in_pass: bool = False


class TimedTokens(Tokens):
    """Tokens that run the plain forward of each batch beside the scan's own.

    Batches are made beforehand: whoever runs the plain forwards needs them too.
    """

    def __init__(self, n: int, length: int, batch_size: int, module: Any, clock: Clock) -> None:
        super().__init__(n, length, batch_size)
        self.module, self.clock = module, clock
        self.ready = {batch.order[0].item(): batch for batch in super().batches(0, n)}

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield the batches of a unit, with plain forwards around them while the pass runs."""
        for first in range(start, stop, self.batch_size):
            batch = self.ready.get(first)
            if batch is None or first + len(batch) > stop:
                batch = self._batch(first, min(first + self.batch_size, stop))
            yield batch
            if not self.clock.in_pass:
                continue
            forward = forward_of(self.module, **batch.kwargs)
            self.clock.plain.append(seconds_of(forward))
            if len(self.clock.plain) % EVERY == 1:
                self.clock.paired.append(self.clock.plain[-1])
                self.clock.again.append(seconds_of(forward))
                with bare_hooks(self.module, [f"h.{i}" for i in range(len(self.module.h))]):
                    self.clock.bare.append(seconds_of(forward))


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the process time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Note the process time of the parts of a scan while this is open."""
    names = ("data_evidence", "model_evidence", "gather", "_run_all", "name_causes")
    kept = {name: getattr(scanning, name) for name in names}

    def noting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            clock.in_pass = name == "gather"
            began = time.process_time()
            try:
                return kept[name](*args, **kwargs)
            finally:
                taken = time.process_time() - began
                clock.parts[name] = clock.parts.get(name, 0.0) + taken
                clock.in_pass = False

        return call

    try:
        for name in names:
            setattr(scanning, name, noting(name))
        yield
    finally:
        for name, function in kept.items():
            setattr(scanning, name, function)


def timed_scan(depth: int, width: int, n: int, length: int, batch_size: int) -> Clock:
    """Return the times of one scan at all layers, error bars on."""
    clock = Clock()
    module = transformer(depth, width)
    inputs = TimedTokens(n, length, batch_size, module, clock)
    stream = live_stream(encoder(module), inputs, further=FURTHER, logits=False)
    _ = inputs.group_keys, stream.identity(), stream.schema  # listing and loading
    settings = ScanSettings(progress=False, error_bars=True)
    for batch in Tokens(batch_size, length, batch_size).batches(0, batch_size):
        for _ in range(3):
            forward_of(module, **batch.kwargs)()
    with watched(clock):
        began = time.process_time()
        scanned = scanning.scan_stream(stream, "random tokens", settings=settings)
        clock.parts["scan_stream"] = time.process_time() - began
    clock.parts["document"] = seconds_of(lambda: document(scanned, "random"))
    plain = sum(clock.plain) + sum(clock.again) + sum(clock.bare)
    clock.parts["pass"] = clock.parts["gather"] - plain
    # ``data_evidence`` is listing: inputs made by hand are listed by a pass of their own.
    beyond = clock.parts["scan_stream"] - plain - clock.parts["data_evidence"]
    clock.parts["all"] = beyond + clock.parts["document"]
    return clock


def scan_time(size: Size) -> list[Row]:
    """Time of a scan of the 12-layer transformer against its plain forwards."""
    depth, width, n, length, per_batch = size.pick((12, 768, 1024, 64, 64), (3, 64, 48, 16, 16))
    clock = timed_scan(depth, width, n, length, per_batch)
    plain = sum(clock.plain)
    noise = ratios(clock.again, clock.paired, clock.again)
    checks = clock.parts["model_evidence"]
    results = clock.parts["all"] - clock.parts["pass"] - checks
    what = f"{depth} x {width}, {n} texts of {length}"
    shares = (
        f"pass {clock.parts['pass'] / plain:.3f} x, results {results / plain:.3f} x, "
        f"plain {plain:.1f} s, {noise.noise}"
    )
    return [
        Row(
            "scan",
            f"scan, {what}: pass and results",
            (clock.parts["pass"] + results) / plain,
            budget=TIME_BUDGET,
            spread=noise.spread,
            rounds=noise.rounds,
            note=shares,
        ),
        Row(
            "scan",
            f"scan, {what}: with the checks of the model itself",
            clock.parts["all"] / plain,
            note=f"checks before the pass {checks / plain:.3f} x",
        ),
    ]


def scan_small(size: Size) -> list[Row]:
    """Return what a pass adds to the forwards of a small model, in what bare hooks add.

    What one scan takes beyond its forwards is a small difference of large sums, so it is the median
    of scans, and the spread is that of the same difference between the plain forwards and those
    that run again. Bare hooks are compared with those, which find the caches as warm.
    """
    depth, n, rounds = 6, size.pick(1024, 24), size.pick(9, 2)
    beyond: list[float] = []
    bare: list[float] = []
    noise: list[float] = []
    forward: list[float] = []
    for _ in range(rounds):
        clock = timed_scan(depth, 64, n, 64, 1)
        mine = 1e6 / len(clock.plain) / depth
        plain, paired = sum(clock.plain), sum(clock.paired)
        beyond.append(mine * (clock.parts["pass"] - plain))
        bare.append(mine * plain * (sum(clock.bare) - sum(clock.again)) / paired)
        noise.append(mine * plain * (sum(clock.again) / paired - 1))
        forward.append(1e3 * plain / len(clock.plain))
    unit = statistics.median(bare)
    return [
        Row(
            "scan-small",
            f"scan, small net ({depth} x 64, one text of 64), added time over that of bare hooks "
            "with the same means",
            statistics.median(beyond) / unit,
            budget=BARE_BUDGET,
            spread=spread_of(noise) / abs(unit),
            rounds=rounds,
            note=(
                f"{statistics.median(beyond):.0f} ({min(beyond):.0f} to {max(beyond):.0f}) against "
                f"{unit:.0f} us for each site and batch in {rounds} scans of {n} texts, plain "
                f"forward {statistics.median(forward):.2f} ms"
            ),
        )
    ]


def scan_memory(size: Size) -> list[Row]:
    """Peak memory of a scan of few and of four times as many rows."""
    few, many = size.pick((8_000, 32_000), (256, 1024))
    depth, width = size.pick((6, 256), (2, 64))
    target = "benchmarks.scanning:peak_of_scan"
    peaks = [run_child(target, steady=True, depth=depth, width=width, n=n) for n in (few, many)]
    return [
        Row(
            "scan-memory",
            f"scan, {depth} x {width}, peak memory of {many} against {few} texts of 16",
            peaks[1] / peaks[0],
            budget=MEMORY_BUDGET,
            note=f"{peaks[0]:.0f} and {peaks[1]:.0f} MiB, Python and torch included",
        )
    ]


def peak_of_scan(depth: int, width: int, n: int) -> float:
    """Return the peak memory in MiB of this process after a scan with its document."""
    stream = live_stream(
        encoder(transformer(depth, width)), Tokens(n, 16, 64), further=FURTHER, logits=False
    )
    settings = ScanSettings(progress=False)
    with torch.no_grad():
        document(scanning.scan_stream(stream, "random tokens", settings=settings), "random")
    return resident()
