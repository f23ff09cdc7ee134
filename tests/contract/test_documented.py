"""What is exported, what is documented and what these laws are tried on is one set."""

import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest

import sonde.stats
from contract.statistics import CASES, exported_instruments, learners
from sonde.core.statistic import Statistic
from sonde.findings.catalogue import rule_classes
from sonde.run.instruments.catalogue import word_of_class

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def docs(tmp_path_factory) -> Path:
    """The generated pages, in a folder of their own."""
    place = tmp_path_factory.mktemp("docs")
    for name in ("papers.bib", "studies.md", "studies.tsv"):
        shutil.copy(ROOT / "docs" / name, place)
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        importlib.import_module("make_docs").make_pages(place)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return place


def sections_of(page: Path) -> dict[str, str]:
    """Return the text of each section of a page by the name that it is about."""
    parts = re.split(r"^## `(\w+)`$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def module_of(page: Path) -> str:
    """Return the module that a page is about; its title says so."""
    return page.read_text(encoding="utf-8").partition("\n")[0].strip("# `")


def test_every_instrument_has_a_page(docs):
    pages = {path.stem for path in (docs / "methods").glob("*.md")}
    assert pages == {word_of_class(type(i)) for i in exported_instruments()}


def test_a_line_of_a_docstring_that_starts_with_a_number_is_no_list(docs):
    for page in sorted((docs / "methods").glob("*.md")) + sorted((docs / "reference").glob("*.md")):
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        broken = re.findall(r"^(?!\d+\. |- |\s|$).*\n(?:\d+\. |- ).*", text, re.MULTILINE)
        assert broken == [], page.name


def test_every_code_has_a_page(docs):
    assert {path.stem.upper() for path in (docs / "findings").glob("*.md")} == set(rule_classes())


def test_every_statistic_is_exported_documented_and_tested(docs):
    exported = {name for name in sonde.stats.__all__ if is_statistic(getattr(sonde.stats, name))}
    tried = {type(c.statistic).__name__ for c in CASES} | {
        type(c.statistic).__name__ for c in learners()
    }
    sections = sections_of(docs / "reference" / "stats.md")
    assert exported == exported & tried == exported & sections.keys()


def is_statistic(member: object) -> bool:
    is_class = isinstance(member, type) and issubclass(member, Statistic)
    return is_class and not inspect.isabstract(member)


def test_every_exported_name_has_its_call_and_its_docstring(docs):
    pages = sorted((docs / "reference").glob("*.md"))
    assert {"core", "stats", "tap", "data", "store"} <= {page.stem for page in pages}
    for page in pages:
        package = importlib.import_module(module_of(page))
        sections = sections_of(page)
        assert sections.keys() == set(package.__all__)
        for name, text in sections.items():
            assert text.strip().startswith(f"```python\n{name}"), (page.stem, name)
            value = getattr(package, name)
            said = (value.__doc__ or "").strip().partition("\n")[0]
            without = isinstance(value, tuple | dict | ModuleType) or get_origin(value) is not None
            assert without or said.replace("``", "`") in text


def test_packages_that_export_are_documented(docs):
    rooms = {f"sonde.{p.parent.name}" for p in (ROOT / "src" / "sonde").glob("*/__init__.py")}
    exporting = {room for room in rooms if hasattr(importlib.import_module(room), "__all__")}
    pages = {module_of(path) for path in (docs / "reference").glob("*.md")}
    described = {"sonde.measure", "sonde.detect", "sonde.cli"}
    assert exporting - described | {"sonde_studies"} == pages
