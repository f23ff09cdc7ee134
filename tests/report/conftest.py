"""A whole report to draw, and one that holds nothing but what the schema asks for."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sonde.report import to_html

EXAMPLE = json.loads(Path(__file__).with_name("example.json").read_text("utf-8"))


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(EXAMPLE)


@pytest.fixture(scope="session")
def page() -> str:
    return to_html(EXAMPLE)


@pytest.fixture
def bare() -> dict[str, Any]:
    verdict = dict.fromkeys(EXAMPLE["verdict"], 0)
    name = {"name": "m"}
    source = {
        "model": name,
        "data": name,
        "other": None,
        "command": "sonde scan m m",
        "versions": {},
    }
    return {
        "schema": "sonde-scan/1",
        "verdict": verdict,
        "findings": [],
        "checks": [],
        "sites": [],
        "limits": [],
        "shows_inputs": False,
        "partial": None,
        "provenance": source,
    }
