"""Estimate the cost of a scan from scans of a few examples."""

import time
from dataclasses import replace
from pathlib import Path

from sonde.core.instrument import SAMPLE
from sonde.core.plan import Split
from sonde.core.stream import Stream
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.scan import HALF, pass_of, scan_stream
from sonde.findings.settings import ScanSettings
from sonde.run.estimating.job_estimate import JobEstimate
from sonde.run.estimating.jobs import Needs, estimated
from sonde.run.estimating.sampled import sampled
from sonde.run.estimating.trials import Clock
from sonde.run.passes.driver import run_pass
from sonde.run.passes.memory import estimate


def estimate_scan(
    stream: Stream,
    *,
    other: Stream | None = None,
    settings: ScanSettings | None = None,
    examples: int | None = None,
    clock: Clock = time.perf_counter,
) -> JobEstimate:
    """Estimate the cost of a scan: passes over all rows, then checks on samples of them.

    The passes are tried alone. The checks read at most ``SAMPLE`` rows of a site, so scans of that
    many examples show what they take of more. Which changes they try depends on what they detect.
    """
    settings = replace(settings or ScanSettings(), progress=False, directory=None)
    split = Split(HALF, stream.seed) if other is not None else None
    wanted, plan = pass_of(stream, data_evidence(stream, "data", False), settings, split)
    whole = estimate(wanted, stream, plan)

    def passes(part: Stream, folder: Path) -> float:
        _run_passes(part, other, settings)
        return 0.0

    def whole_scan(part: Stream, folder: Path) -> float:
        _run_passes(part, other, settings)
        began = clock()
        second = None if other is None else sampled(other, len(part))
        scan_stream(part, other=second, settings=settings)
        return clock() - began

    needs = Needs(
        whole.state_bytes,
        whole.total_bytes,
        whole.disk_bytes,
        n_ranges=len(plan.commits()),
        held=lambda n: float(min(n, SAMPLE)),
        closing=whole_scan,
        closing_name="checks",
    )
    return estimated("scan", stream, passes, needs, examples, clock)


def _run_passes(part: Stream, other: Stream | None, settings: ScanSettings) -> None:
    """Read the rows of a sample, and as many of OTHER."""
    split = None if other is None else Split(HALF, part.seed)
    both = [(part, split)]
    if other is not None:
        both.append((sampled(other, len(part)), None))
    for stream, own in both:
        wanted, plan = pass_of(stream, data_evidence(stream, "data", False), settings, own)
        run_pass(stream, wanted, plan, crew=settings.crew)
