"""A section of a model card says what the report says, replaces itself, and holds no Markdown."""

import copy
import json
from pathlib import Path

import pytest

from sonde.core.errors import InputError
from sonde.report.card import END, START, save_card, to_card

EXAMPLE = json.loads((Path(__file__).parent / "example.json").read_text("utf-8"))


def test_it_holds_errors_and_warnings_and_no_inputs():
    card = to_card(EXAMPLE)
    listed = [f for f in EXAMPLE["findings"] if f["level"] != "note" and not f["ignored"]]
    assert listed
    for finding in EXAMPLE["findings"]:
        assert (f"| {finding['level']} | {finding['code']} |" in card) == (finding in listed)
    assert "1,797 rows" in card
    places = [place for f in EXAMPLE["findings"] for place in f["rows"]]
    assert places
    assert [place for place in places if place in card] == []


def test_names_and_sentences_are_no_markdown():
    report = copy.deepcopy(EXAMPLE)
    report["provenance"]["data"]["name"] = "a|b<script>_c_"
    report["findings"][0] |= {"level": "error", "ignored": False, "sentence": "x | y <b>z</b>"}
    card = to_card(report)
    assert r"a\|b\<script\>\_c\_" in card
    assert r"x \| y \<b\>z\</b\>" in card


def test_a_second_scan_replaces_its_section_alone(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("---\nlicense: mit\n---\n# Mine\n")
    save_card(EXAMPLE, file)
    file.write_text(file.read_text() + "\n## After\n")
    newer = copy.deepcopy(EXAMPLE)
    newer["provenance"]["data"]["name"] = "second.jsonl"
    save_card(newer, file)
    text = file.read_text()
    assert text.startswith("---\nlicense: mit\n---\n# Mine\n")
    assert text.endswith("\n## After\n")
    assert text.count(START) == text.count(END) == 1
    assert "second.jsonl" in text
    assert "support.jsonl" not in text
    with pytest.raises(InputError, match=r"--card to end in .md"):
        save_card(EXAMPLE, tmp_path / "card.txt")
