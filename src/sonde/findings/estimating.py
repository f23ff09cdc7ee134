"""Estimate the cost of a scan from scans of a few examples."""

import time
from dataclasses import replace
from pathlib import Path

from sonde.core.plan import Split
from sonde.core.stream import Stream
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.scan import HALF, pass_of, scan_stream
from sonde.findings.settings import ScanSettings
from sonde.run.estimating.job_estimate import JobEstimate
from sonde.run.estimating.jobs import Needs, estimated
from sonde.run.estimating.sampled import sampled
from sonde.run.estimating.trials import Clock
from sonde.run.passes.memory import estimate


def estimate_scan(
    stream: Stream,
    *,
    other: Stream | None = None,
    settings: ScanSettings | None = None,
    examples: int | None = None,
    clock: Clock = time.perf_counter,
) -> JobEstimate:
    """Estimate the cost of a scan: one pass over all rows, then checks on samples of them.

    Which changes the checks try depends on what they find, so the costliest trial counts.
    """
    settings = replace(settings or ScanSettings(), progress=False, directory=None)
    split = Split(HALF, stream.seed) if other is not None else None
    wanted, plan = pass_of(stream, data_evidence(stream, "data", False), settings, split)
    whole = estimate(wanted, stream, plan)

    def work(part: Stream, folder: Path) -> float:
        second = None if other is None else sampled(other, len(part))
        began, now = clock(), time.monotonic()
        scanned = scan_stream(part, other=second, settings=settings)
        passes = [p.wall_seconds for p in (scanned.gathered, scanned.other) if p]
        rows = sum(passes) / max(1e-9, time.monotonic() - now)
        return (clock() - began) * (1 - min(1.0, rows))

    needs = Needs(
        whole.state_bytes,
        whole.total_bytes,
        whole.disk_bytes,
        n_ranges=len(plan.commits()),
    )
    return estimated("scan", stream, work, needs, examples, clock)
