"""A pytest plugin: the processor time of every test, and a limit for tests without a marker.

``make test`` runs every test that has none of the markers ``slow more browser``; ``make test-rest``
runs the others. A test without a marker may take ``LIMIT_SECONDS`` of processor time, including its
child processes; one that must stay in ``make test`` although it takes longer is marked
``essential``. Fixtures that several tests share are left out, and a test is too slow only if it
takes too long twice in a row, so that no test pays for an import that comes first. Its time is
compared with that of a fixed loop, run before and after it, so that a slow or busy machine has a
longer limit. The end of the run lists the tests that are too slow; where ``CI`` is set, one that
takes ``FAILS_AT`` times its limit fails: figures of one test differ by a fifth from run to run.

``SONDE_TEST_TIMES=FILE`` appends one line of JSON for each test: id, seconds, seconds of shared
fixtures, markers.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.runner import runtestprotocol

LIMIT_SECONDS = 1.0
FAILS_AT = 1.5
LOOP_SECONDS = 0.055
"""What ``_loop_seconds`` gives on a quiet core of a server processor of 2023."""
TOO_SLOW = "too slow"
UNLIMITED = frozenset({"essential", "slow", "more", "browser", "gpu"})
_shared = 0.0
"""Seconds that fixtures shared by several tests have taken in this process."""


def processor_seconds() -> float:
    """Return the processor time of this process and of the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pytest_report_header() -> str:
    """Name the processor and the kernels that torch chose for it: times and rounding differ."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"processor: {name or 'unknown'}, {os.cpu_count()} cores, kernels of torch: {kernels}"


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    """Add up the time of fixtures that are not made for one test alone."""
    global _shared
    began = processor_seconds()
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            _shared += processor_seconds() - began


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run one test, a second time if it took too long, and report the last run."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    # A doctest has lost its names after its first run, and no marker can be put on it.
    limited = isinstance(item, pytest.Function) and not (
        UNLIMITED & {mark.name for mark in item.iter_markers()}
    )
    reports, seconds, shared = _timed_run(item, nextitem)
    _record(item, seconds, shared)
    if limited and seconds > LIMIT_SECONDS and all(report.passed for report in reports):
        before = _loop_seconds()
        reports, again, _ = _timed_run(item, nextitem)
        limit = LIMIT_SECONDS * max(1.0, before / LOOP_SECONDS, _loop_seconds() / LOOP_SECONDS)
        if again > limit and all(report.passed for report in reports):
            _mark(reports, seconds, again, limit)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _loop_seconds() -> float:
    """Return the processor time of a fixed loop, which says how fast this processor is now."""
    began = processor_seconds()
    sum(i * i % 7 for i in range(800_000))
    return processor_seconds() - began


def _timed_run(
    item: pytest.Item, nextitem: pytest.Item | None
) -> tuple[list[pytest.TestReport], float, float]:
    """Return the reports of one run, its own seconds, and the seconds of shared fixtures."""
    began, shared = processor_seconds(), _shared
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    shared = _shared - shared
    return reports, processor_seconds() - began - shared, shared


def _mark(reports: list[pytest.TestReport], first: float, second: float, limit: float) -> None:
    """Note in the report that the test is too slow; in CI fail it if it is far above the limit."""
    call = next(report for report in reports if report.when == "call")
    text = (
        f"expected at most {limit:.2f} s of processor time on this machine from a test without a "
        f"marker, got {first:.2f} s and {second:.2f} s. Make it faster, or mark it "
        "@pytest.mark.slow, so that `make test-rest` runs it."
    )
    if os.environ.get("CI") and min(first, second) > FAILS_AT * limit:
        call.outcome, call.longrepr = "failed", text
    else:
        call.user_properties.append((TOO_SLOW, text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the tests that are too slow, wherever they ran."""
    reports = terminalreporter.stats.get("passed", ())
    slow = {r.nodeid: dict(r.user_properties).get(TOO_SLOW) for r in reports}
    for name, text in slow.items():
        if text is not None:
            terminalreporter.write_line(f"slow: {name}: {text}")


def _record(item: pytest.Item, seconds: float, shared: float) -> None:
    """Append the test's time to the file that the environment names."""
    if file := os.environ.get("SONDE_TEST_TIMES"):
        marks = sorted({mark.name for mark in item.iter_markers()} & UNLIMITED)
        line = {"id": item.nodeid, "seconds": seconds, "shared": shared, "marks": marks}
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
