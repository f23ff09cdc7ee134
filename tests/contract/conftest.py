"""Mark laws on further parameter sets ``more``; print the slowest ten laws and their sum."""

from collections.abc import Hashable
from typing import Any

import pytest

TIMES = pytest.StashKey[dict[str, float]]()
LEARNERS = {"FOD", "InfoNCE", "PAWN", "SimpleNet"}
"""Methods that train a network in each law: their laws are left to ``make test-rest``."""
PLANTED = "test_broken.py"
LONG = {"CorrelationMatch", "InfoMEC", "Modularity", "MutualInformationGap", "Tcav"}
"""Methods whose laws on many sizes of data, or on degenerate rows, take seconds."""


def _method_of(value: Any) -> Any:
    """Return the method in a case of the laws; other values are returned unchanged."""
    for name in ("layer", "statistic", "rewrite", "explainer"):
        value = getattr(value, name, value)
    return value


def _subject(value: Any) -> Hashable:
    """Return what a test's parameter is about, without the parameters of a method."""
    if isinstance(value, dict):
        return None
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str | int | float | None):
        return value
    return getattr(value, "name", type(_method_of(value)).__name__)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark laws on a method's second and later parameter sets, and laws of methods that train."""
    seen: set[Hashable] = set()
    for item in items:
        if item.path.parent.name != "contract" or item.path.name == PLANTED:
            continue
        parameters = getattr(item, "callspec", None)
        if parameters is None:
            continue
        about = tuple((name, _subject(value)) for name, value in parameters.params.items())
        key = (item.path.name, item.originalname, about)  # type: ignore[attr-defined]
        subjects = {subject for _, subject in about}
        if key in seen or LEARNERS & subjects:
            item.add_marker(pytest.mark.more)
        elif "Tcav" in subjects or (LONG & subjects and subjects & {"sizes", "degenerate"}):
            item.add_marker(pytest.mark.slow)
        seen.add(key)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TIMES] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    yield
    if "contract" in item.path.parts:
        times = item.config.stash.setdefault(TIMES, {})
        times[item.nodeid] = times.get(item.nodeid, 0.0) + call.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    times = terminalreporter.config.stash.get(TIMES, {})
    if not times:
        return
    terminalreporter.section(f"contract suite: {sum(times.values()):.1f} s, slowest ten")
    for name, seconds in sorted(times.items(), key=lambda item: -item[1])[:10]:
        terminalreporter.write_line(f"{seconds:7.2f} s  {name}")
