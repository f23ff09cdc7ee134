"""Actions of others run with our rights: each is pinned by the hash of a commit, never by a tag."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    ROOT / "action.yml",
    *sorted((ROOT / ".github").rglob("*.yml")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
USED = re.compile(r"uses: (?P<action>[\w./-]+)@(?P<at>\S+)(?P<said> # v[\d.]+)?")
OWN = "OWNER/sonde"


def loose(text: str) -> list[str]:
    """Return the actions that are not pinned, or whose version is not said beside the hash."""
    return [
        found["action"]
        for found in USED.finditer(text)
        if found["action"] != OWN
        and not (re.fullmatch("[0-9a-f]{40}", found["at"]) and found["said"])
    ]


def test_tags_and_bare_hashes_are_found():
    text = "uses: a/b@v4\nuses: c/d@" + "0" * 40 + "\nuses: e/f@" + "1" * 40 + " # v4.2.2\n"
    assert loose(text) == ["a/b", "c/d"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned(path: Path):
    assert loose(path.read_text(encoding="utf-8")) == []


def test_some_actions_are_used():
    assert sum(len(USED.findall(path.read_text(encoding="utf-8"))) for path in FILES) >= 5
