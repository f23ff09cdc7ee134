import pytest

from sonde.findings.catalogue import rule_classes
from sonde.findings.words.places import least_groups_for_silence, places, sentence
from sonde.findings.words.text import LONGEST

MINE = [c for c in rule_classes() if c < "SND030"]


def test_runs_of_numbers_are_joined_within_one_list_only() -> None:
    names = ["model.layers.0.mlp", "model.layers.1.mlp", "model.layers.3.mlp", "head"]
    assert places(names) == "model.layers.0-1.mlp, model.layers.3.mlp and head"
    assert places(["a.1", "b.2"]) == "a.1 and b.2"
    assert places(["x"]) == "x"


def test_a_sentence_never_grows_beyond_its_length() -> None:
    assert sentence("First.", "x" * LONGEST, "Last.") == "First. Last."
    assert len(sentence("y" * 500)) == LONGEST
    assert sentence("x" + "words " * 100).endswith(" words…")  # not in the middle of a word


@pytest.mark.truth("20 ln(768 / 0.01) = 225")
def test_rows_that_silence_needs() -> None:
    assert least_groups_for_silence(768) == 225


@pytest.mark.parametrize("code", MINE)
def test_every_rule_explains_itself(code: str) -> None:
    cls = rule_classes()[code]
    for text in (cls.title, cls.why, cls.how, cls.plant, cls.twin):
        assert text
    assert cls.code == code
    assert all(isinstance(v, int | float) for v in cls().thresholds().values())
