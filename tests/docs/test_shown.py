"""What pages show below a command is what the command prints."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli_case import run_words

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "docs").glob("howto/*.md")),
         *sorted((ROOT / "docs").glob("coming_from/*.md"))]  # fmt: skip
BLOCK = re.compile(r"^## [^\n]*$|^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\$ (.*)|(sonde .*)")
CONTINUED = re.compile(r" +(?:-|\\?$)|#|$")
LEFT_OUT = "..."
NOT_RUN = {
    "encode": "its figures belong to the argparse.py of one version of Python",
    "insert_a_layer": "ten training runs take minutes",
    "large_models": "its times are those of one machine, and its model is fetched",
    "overview": "drawings of the design",
    "watch_a_stream": "python -m tools.figures alarms simulates thousands of streams",
}
"""Pages with shown lines that no command of theirs prints within a test, and why."""


@dataclass(frozen=True)
class Part:
    """Code before the commands of one part of a page, the commands, and the shown output."""

    code: str
    commands: list[str]
    shown: list[str]


def parts_of(page: Path) -> Iterator[Part]:
    """Yield the parts of a page; blocks of ``output`` belong to code and are tested with it."""
    code, commands, shown, later = list[str](), list[str](), list[str](), list[str]()
    for match in BLOCK.finditer(f"{page.read_text('utf-8')}\n## End"):
        if match[2] is None:
            yield Part("\n".join(code), commands, shown)
            code, commands, shown, later = later, [], [], []
        elif match[1] == "python":
            (later if shown else code).append(match[2])  # it may need what the commands wrote
        elif match[1] in ("", "text", "console"):
            lines = match[2].splitlines()
            typed = [line[1] or line[2] for line in map(COMMAND.match, lines) if line]
            rest = [line for line in lines if not COMMAND.match(line)]
            commands += typed
            is_session = match[2].startswith("$ ") and not all(map(CONTINUED.match, rest))
            if match[1] == "text" or is_session:
                shown += [*rest, LEFT_OUT]


WITH_OUTPUT = [page for page in PAGES if any(part.shown for part in parts_of(page))]


def test_pages_that_are_not_run_show_something():
    assert NOT_RUN.keys() < {page.stem for page in WITH_OUTPUT}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # no error to a user
@pytest.mark.parametrize(
    "page", [page for page in WITH_OUTPUT if page.stem not in NOT_RUN], ids=lambda page: page.stem
)
def test_commands_print_what_a_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    code, wrong = "", list[str]()
    for part in parts_of(page):
        code += part.code
        if not part.shown:
            continue
        sys.modules.pop("nets", None)
        (tmp_path / "nets.py").write_text(code)
        importlib.import_module("nets")  # pages call their own functions nets:name
        printed = list[str]()
        for line in part.commands:
            ran = run_words(*shlex.split(line)[1:])
            assert ran.code == 0, ran.err
            printed += (ran.out + ran.err).split()
        for chunk in "\n".join(part.shown).split(LEFT_OUT):
            wrong += [] if contains(printed, chunk.split()) else [chunk]
    sys.modules.pop("nets", None)
    assert wrong == []


def contains(printed: Sequence[str], shown: Sequence[str]) -> bool:
    """Return whether all shown words are printed one after the other."""
    n = len(shown)
    return any(all(map(same, printed[i : i + n], shown)) for i in range(len(printed) - n + 1))


def same(word: str, shown: str) -> bool:
    """Return whether a printed word is the shown word, or a number near it."""
    if word == shown:
        return True
    one, two = (text.strip("%(),;.:±") for text in (word, shown))
    try:
        return float(one) == pytest.approx(float(two), rel=0.05, abs=0.02)
    except ValueError:
        return False


def test_numbers_are_compared_loosely_and_words_exactly():
    words = ["a", "0.71", "of", "3"]
    assert contains(words, ["0.72", "of"])
    assert not contains(words, ["0.82", "of"])
    assert not contains(words, ["0.71", "in"])
