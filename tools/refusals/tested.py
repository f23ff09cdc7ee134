"""A pytest plugin that writes the refusals of a test run to a file.

``pytest -p tools.refusals.tested --refusals FILE TESTS`` appends one JSON line for each refusal:
the test, the site, the message. ``python -m tools.refusals --from FILE`` reads them.
"""

import json
from collections.abc import Generator
from pathlib import Path

import pytest
from tools.refusals.recording import recorded
from tools.refusals.sites import Site, raise_sites

_SITES = pytest.StashKey[tuple[list[Site], Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--refusals", metavar="FILE", help="append refusals of the tests to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Read the sites once."""
    if file := config.getoption("--refusals"):
        config.stash[_SITES] = raise_sites(), Path(file)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Append the refusals that a test provokes, each site once."""
    if _SITES not in item.config.stash:
        return (yield)
    sites, file = item.config.stash[_SITES]
    with recorded(sites) as met:
        done = yield
    with file.open("a", encoding="utf-8") as lines:
        for name, message, owner_ran in {one.site: one for one in met}.values():
            row = {"wrong": item.nodeid, "site": name, "message": message, "owner_ran": owner_ran}
            lines.write(json.dumps(row) + "\n")
    return done
