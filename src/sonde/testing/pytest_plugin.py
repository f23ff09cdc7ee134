"""The fixture ``assert_scan`` for pytest, which saves the pages of scans: ``--sonde-pages DIR``.

pytest loads it wherever sonde is installed; nothing heavy is imported before a test asks for it.
"""

import re
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--sonde-pages``."""
    group = parser.getgroup("sonde", "scans of models")
    group.addoption(
        "--sonde-pages", metavar="DIR", help="keep the page of every scan of assert_scan here"
    )


@pytest.fixture
def assert_scan(request: pytest.FixtureRequest) -> Any:
    """Provide ``sonde.testing.assert_scan``, which saves its page if pages are requested.

    The page bears the name of the test.
    """
    from sonde.testing import assert_scan as check

    folder = request.config.getoption("--sonde-pages")
    if folder is None:
        return check
    name = re.sub(r"[^\w.-]+", "_", request.node.name).strip("_")
    Path(folder).mkdir(parents=True, exist_ok=True)

    def kept(*args: Any, **options: Any) -> Any:
        return check(*args, **{"page": Path(folder) / f"{name}.html", **options})

    return kept
