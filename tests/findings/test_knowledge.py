"""Each code's knowledge stands in its own file, and every list of codes is computed from there."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import sonde
from sonde.findings.catalogue import codes_of, rule_classes
from sonde.findings.rule import Panel, Section
from sonde.findings.symptoms import SYMPTOMS, Symptom

SRC = Path(sonde.__file__).parent


def codes_in(text: str) -> list[int]:
    """Return the lines of code, without docstrings, that name a finding."""
    tree = ast.parse(text)
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and id(node) not in docs and _names(node.value))
        or (isinstance(node, ast.Name) and _names(node.id))
    ]


def _names(value: object) -> bool:
    return isinstance(value, str) and re.search(r"SND\d", value) is not None


@pytest.mark.parametrize("text", ['X = ("SND001",)', "SND001.code", 'f"SND0{n}"'])
def test_a_code_outside_its_file_is_seen(text: str) -> None:
    assert codes_in(text)


def test_no_code_stands_outside_its_file() -> None:
    files = [p for p in SRC.rglob("*.py") if SRC / "findings" / "codes" not in p.parents]
    texts = {p: p.read_text("utf-8") for p in files}
    assert {p for p, text in texts.items() if _names(text) and codes_in(text)} == set()


@pytest.mark.parametrize("code", rule_classes())
def test_a_code_says_what_a_user_sees_and_what_it_breaks(code: str) -> None:
    cls = rule_classes()[code]
    assert cls.symptoms
    assert set(cls.symptoms) <= set(get_args(Symptom))
    assert "breaks" in vars(cls), f"{code} does not say which answers it breaks"


def test_every_symptom_panel_and_section_has_a_code() -> None:
    classes = rule_classes().values()
    named = {name for rows in SYMPTOMS.values() for name in rows}
    assert named == set(get_args(Symptom)) == {s for cls in classes for s in cls.symptoms}
    assert {cls.panel for cls in classes} == set(get_args(Panel))
    assert all(codes_of(section) for section in get_args(Section))
