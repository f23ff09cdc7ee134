"""The cheat sheet: its commands and flags exist, and it fills two pages."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli_case import run_words

from sonde.cli.commands import COMMANDS
from sonde.cli.edits import EDITS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "cheat_sheet.md").read_text("utf-8")
LINES = re.findall(r"^\$ sonde (.+)$", TEXT, re.MULTILINE)


def flags_by_command() -> dict[tuple[str, ...], set[str]]:
    """Return the flags that the sheet gives each command."""
    by_command: dict[tuple[str, ...], set[str]] = {}
    for line in LINES:
        words = shlex.split(line, comments=True)
        head = tuple(words[: 2 if words[0] == "edit" else 1])
        assert head[0] in COMMANDS or (head[0] == "edit" and head[1] in EDITS), line
        flags = {word for word in words if re.match("--?[a-z]", word)}
        by_command.setdefault(head, set()).update(flags)
    return by_command


FLAGS = flags_by_command()


@pytest.mark.parametrize("command", sorted(FLAGS), ids=" ".join)
def test_flags_exist(command):
    shown = run_words(*command, "--help").out if FLAGS[command] else ""
    missing = {f for f in FLAGS[command] if not re.search(rf"(?<![\w-]){f}(?![\w-])", shown)}
    assert missing == set()


def test_the_commands_that_people_type_are_there():
    asked = {"scan", "fit", "calibrate", "score", "labels", "read", "drift", "compare", "explain"}
    assert asked | {"edit", "compress", "serve", "recipe"} <= {c[0] for c in FLAGS}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_it_prints_on_two_pages(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "cheat_sheet.py", tmp_path / "sheet.pdf"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith(": 2 pages\n")
