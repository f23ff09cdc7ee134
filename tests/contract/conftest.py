"""Print the slowest ten tests of the contract suite, and their sum."""

import pytest

TIMES = pytest.StashKey[dict[str, float]]()


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
