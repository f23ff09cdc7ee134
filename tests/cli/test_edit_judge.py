"""``sonde edit judge``: the figures of a changed language model, and the exit code."""

import json

import pytest

from lm_twin_case import FOLDER, TEXTS


@pytest.mark.slow
def test_equal_models_are_good_and_an_unwritten_fact_is_poor(run, tmp_path):
    page, facts = tmp_path / "page.html", tmp_path / "facts.jsonl"
    same = run("edit", "judge", FOLDER, FOLDER, "--report", page)
    assert same.code == 0, same.err
    assert "The edit is good" in same.out
    assert page.is_file()
    fact = {"prompt": "The capital of France is", "subject": "France", "target": " Rome"}
    facts.write_text(json.dumps(fact) + "\n")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    found = run("edit", "judge", FOLDER, FOLDER, "--facts", facts, "--data", texts, "--json")
    assert found.code == 1, found.err
    language = found.json()["language"]
    assert language["worst"] == "efficacy"
    assert language["scores"]["efficacy"] == 0.0
    assert language["scores"]["text loss"] == 1.0
