"""Each command and its Python call, as ``docs/howto/commands_in_python.md`` names them, agree."""

import json
import re
import shlex
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
from tests.cli_case import run_words

import sonde
from sonde.core.finite import finite_json

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "commands_in_python.md"
ROWS = re.findall(r"^\| `(sonde .+?)` \| `(sonde\..+)` \|$", PAGE.read_text(), re.MULTILINE)
WRITTEN_FIRST = {
    "sonde edit undo": "sonde compress sonde:digits sonde:digits --to 8bit --method rtn -o NEW",
    "sonde decode": "sonde encode pairs.jsonl -o coded",
}
MEASURED = {"time", "times", "seconds"}
"""Figures that differ from run to run."""
PAIR = {
    "clean": "for name in names:",
    "corrupt": "for item in names:",
    "answer": " print(name",
    "instead": " print(item",
}


def figures(found):
    """Return what a call found as JSON, without figures of time."""
    if hasattr(found, "document"):
        found = found.document
    elif is_dataclass(found):
        found = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(found).items()}
    return _without_times(json.loads(json.dumps(finite_json(found))))


def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in MEASURED}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def enter(folder, monkeypatch, command):
    """Go to a new folder that holds what the command reads."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    for start, first in WRITTEN_FIRST.items():
        if command.startswith(start):
            assert run_words(*shlex.split(first)[1:], "--quiet").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("command", "call"), ROWS, ids=[call.split("(")[0] for _, call in ROWS])
def test_a_command_and_its_call_find_the_same(command, call, tmp_path, monkeypatch):
    enter(tmp_path / "command", monkeypatch, command)
    ran = run_words(*shlex.split(command)[1:], "--json")
    assert ran.code == 0, ran.err
    typed = figures(ran.json())
    enter(tmp_path / "call", monkeypatch, command)
    found = eval(call, {"sonde": sonde})
    if "undo" in call:
        assert {p.name for p in Path("OLD").iterdir()} >= set(typed["files"])
        return
    shown = figures(found)
    assert {k: shown[k] for k in typed} == typed
    assert len(typed) > 1
