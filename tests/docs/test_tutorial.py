"""What the tutorial shows is what its commands print."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli_case import run_words

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks_of(part: str) -> list[tuple[str, str]]:
    """Return language and text of the blocks of one part of the page."""
    text = PAGE.read_text(encoding="utf-8")
    return BLOCK.findall(text.partition(f"## {part}")[2].partition("\n## ")[0])


@pytest.mark.slow
def test_the_example_of_detection_prints_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    printed, n_shown = "", 0
    for language, text in blocks_of("2. Inputs that a model does not know"):
        if language == "python":
            subprocess.run([sys.executable, "-c", text], check=True)
        elif language == "text":
            shown = [line for line in text.splitlines() if line != "..."]  # lines left out
            missing = [line for line in shown if line not in printed.splitlines()]
            assert missing == []
            n_shown += 1
        else:
            for line in text.splitlines():
                ran = run_words(*shlex.split(line)[1:])
                assert ran.code == 0, ran.err
                printed += ran.out
    assert n_shown == 2
