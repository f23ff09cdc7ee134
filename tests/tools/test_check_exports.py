"""Each line that ``tools/check_exports.py`` can print is printed for a planted fault."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from sonde.core.instrument import Instrument
from sonde.core.statistic import Statistic

ROOT = Path(__file__).resolve().parents[2]


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("checks", ROOT / "tools" / "check_exports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = _load()


class Width(Instrument):
    paper: ClassVar[str] = "known2020"


class Sum(Statistic[Any]):
    pass


def family(name: str, *exports: str) -> ModuleType:
    """Return a package that exports one instrument under these names, and a helper."""
    package = ModuleType(name)
    for export in exports:
        setattr(package, export, type(export, (Width,), {}))
    vars(package).update(width=print, __all__=[*exports, "width"])
    return package


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a project whose only method is documented and tested."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "papers.bib").write_text("@article{known2020,\n  title = {T}\n}\n")
    for name in ("measure", "detect", "findings"):
        (tmp_path / "tests" / name).mkdir(parents=True)
    (tmp_path / "tests" / "measure" / "test_row_width.py").touch()
    return tmp_path


def test_a_method_in_order_is_fine(root: Path) -> None:
    assert checks.wrong_families({"measure": family("measure", "RowWidth")}, root) == []


def test_a_method_without_its_test_file(root: Path) -> None:
    (root / "tests" / "measure" / "test_row_width.py").unlink()
    assert checks.wrong_families({"measure": family("measure", "RowWidth")}, root) == [
        "measure.RowWidth has no tests/measure/test_row_width.py"
    ]


def test_a_paper_that_the_bibliography_lacks(root: Path) -> None:
    (root / "docs" / "papers.bib").write_text("@book{other2021,\n}\n")
    assert checks.wrong_families({"measure": family("measure", "RowWidth")}, root) == [
        "measure.RowWidth: paper 'known2020' is not in docs/papers.bib"
    ]


def test_two_exports_that_share_one_word(root: Path) -> None:
    (root / "tests" / "detect" / "test_row_width.py").touch()
    both = {"measure": family("measure", "RowWidth"), "detect": family("detect", "RowWidth")}
    assert checks.wrong_families(both, root) == [
        "measure.RowWidth and detect.RowWidth share the word 'row_width'"
    ]
    alike = {"measure": family("measure", "RowWidth", "rowWidth")}
    assert checks.wrong_families(alike, root) == [
        "measure.RowWidth and measure.rowWidth share the word 'row_width'"
    ]


@pytest.mark.parametrize(("kind", "name"), [(Instrument, "Width"), (Statistic, "Sum")])
def test_a_public_class_that_is_not_exported(kind: type, name: str) -> None:
    here = ModuleType(__name__)
    vars(here).update({"Width": Width, "Sum": Sum, "_Hidden": Width, "Instrument": Instrument})
    assert checks.unexported("x", [], [here], kind) == [f"x.{name} is not exported"]
    assert checks.unexported("x", [name], [here], kind) == []


PLANT = """
def check(n):
    return SND999(rows=n).check(evidence(n))

def test_plant():
    found = check(20)
    assert_raised(found, "note")
"""
TWIN = """
def test_twin():
    assert_clear(check(2000))
"""


def findings(root: Path, text: str | None) -> list[str]:
    """Return what is wrong with one code whose test file holds this text."""
    path = root / "tests" / "findings" / "test_snd999.py"
    if text is not None:
        path.write_text(text)
    return checks.wrong_findings(["SND999"], path.parent)


def test_a_code_without_its_own_file(root: Path) -> None:
    (root / "tests" / "findings" / "test_snd998.py").write_text(PLANT + TWIN)
    assert findings(root, None) == ["SND999 has no tests/findings/test_snd999.py"]


def test_a_code_without_plant_or_twin(root: Path) -> None:
    assert findings(root, PLANT + TWIN) == []
    assert findings(root, PLANT) == [
        "tests/findings/test_snd999.py has no twin: SND999 is raised everywhere"
    ]
    assert findings(root, PLANT.replace("assert_raised", "print") + TWIN) == [
        "tests/findings/test_snd999.py never expects SND999 to be raised"
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("assert SND999().check(e).state == 'raised'", {"raised"}),
        ("assert SND999().check(e).state == 'not_applicable'", {"not_applicable"}),
        ("a, b = SND999().check(e), SND998().check(e)\n    assert_clear(a)", {"clear"}),
        ("a, b = SND999().check(e), SND998().check(e)\n    assert_clear(b)", set()),
        ("c = SND999().check(e)\n    assert c.finding.level == 'note'", {"raised"}),
        ("c = SND998().check(e)\n    assert c.finding.level == 'note'", set()),
        ("c = SND999().check(e)\n    assert e and c.state == 'clear'", {"clear"}),
        ("c = SND999().check(e)\n    assert c.state == 'clear' or e", set()),
        ("assert SND999().check(e).state != 'raised'", set()),
        ("n = SND999().check(e).state == 'raised'\n    assert n == 0", set()),
        ("assert_raised(SND998().check(e), 'note')", set()),
    ],
)
def test_what_counts_as_an_expectation(line: str, expected: set[str]) -> None:
    tree = ast.parse(f"def test_it():\n    {line}\n")
    assert checks.expectations(tree, "SND999") == expected


def test_the_exit_code_follows_what_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "wrong_findings", lambda *_: ["SND999 has no test"])
    assert checks.main() == 1
    assert "SND999 has no test" in capsys.readouterr().out
