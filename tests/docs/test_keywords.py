"""Calls that pages, docstrings and notebooks show have the keyword arguments that they name."""

import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sonde
from sonde.data import open_inputs
from sonde.report import ScanSettings

ROOT = Path(__file__).resolve().parents[2]
CALL = re.compile(r"\bsonde(?:\.\w+)+\(")
TEXT = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'")
NAMED = re.compile(r"(?:^|,)\s*(\w+)\s*=(?!=)")
OF_OTHERS = {"sonde.engines.vllm.on_vllm"}
"""Functions that pass their keyword arguments to another library."""


def texts() -> Iterator[tuple[str, str]]:
    """Yield the texts that show calls, by the name of their file."""
    for folder, end in (("docs", "*.md"), ("src", "*.py"), ("examples", "*.ipynb")):
        for page in sorted((ROOT / folder).rglob(end)):
            if "_build" not in page.parts:
                yield str(page.relative_to(ROOT)), page.read_text("utf-8")
    for name in ("README.md", "CHANGELOG.md"):
        yield name, (ROOT / name).read_text("utf-8")


def keywords(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the calls of sonde in a text: the name and the keyword arguments of each."""
    for match in CALL.finditer(text):
        depth, own = 1, ""
        for mark in TEXT.sub("0", text[match.end() : match.end() + 2000]):
            depth += (mark in "([{") - (mark in ")]}")
            own += mark if depth == 1 and mark not in ")]}" else ""
            if depth == 0:
                yield match.group()[:-1], NAMED.findall(own)
                break


def named(path: str) -> Any:
    """Return the object with a dotted name, or None."""
    found: Any = sonde
    for i, part in enumerate(path.split(".")[1:], 2):
        found = getattr(found, part, None)
        if found is None:
            name = ".".join(path.split(".")[:i])
            found = importlib.import_module(name) if importlib.util.find_spec(name) else None
        if found is None:
            return None
    return found


def unknown(text: str) -> list[str]:
    """Return the keyword arguments of calls in a text that the functions do not take."""
    passed = {*inspect.signature(open_inputs).parameters, *ScanSettings.__dataclass_fields__}
    passed |= {*inspect.signature(sonde.read).parameters}
    wrong = []
    for path, words in keywords(text):
        function = named(path)
        if path in OF_OTHERS or not callable(function):
            continue
        own = inspect.signature(function).parameters
        is_open = any(one.kind is one.VAR_KEYWORD for one in own.values())
        taken = {*own, *passed} if is_open else {*own}
        wrong += [f"{path}({word}=)" for word in words if word not in taken]
    return wrong


def test_shown_calls_have_the_keyword_arguments_that_they_name() -> None:
    wrong = {}
    for name, text in texts():
        plain = "".join(
            "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            if name.endswith(".ipynb")
            else text
        )
        if missing := unknown(plain):
            wrong[name] = missing
    assert wrong == {}


def test_a_keyword_argument_that_does_not_exist_is_seen() -> None:
    shown = (
        "`sonde.load(x, colour='a(b')` and sonde.scan(m, d, only=('SND034',), colours=f(limit=2))"
    )
    assert unknown(shown) == ["sonde.load(colour=)", "sonde.scan(colours=)"]
