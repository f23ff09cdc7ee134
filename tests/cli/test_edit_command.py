"""``sonde edit WORD``: what its help teaches, and how a wrong word is told."""

import pytest

from sonde.cli.edits import EDITS, told_by


def test_the_overview_teaches_every_word(run):
    text = run("edit", "--help").out
    assert text == run("edit").out
    flat = " ".join(text.replace("\\\n", " ").split())
    for word, command in EDITS.items():
        for label in ("Example", "Differs"):
            assert told_by(command, label), f"{word} says no {label}"
            assert " ".join(told_by(command, label).split()) in flat
        assert told_by(command, "Example").startswith(f"sonde edit {word} ")


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("words", [["edit"], *(["edit", word, "--help"] for word in EDITS)])
def test_help_is_as_wide_as_the_terminal(run, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(*words).out
    assert "Example" in text or words == ["edit"]
    assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edti"], "no command is called 'edti'. Did you mean edit?"),
        (["edit", "undoo"], "no command is called 'edit undoo'. Did you mean undo?"),
        (["edit", "undo"], "sonde edit undo: expected"),
        (["edit", "undo", "x", "--outptu", "y"], "Did you mean --output?"),
    ],
)
def test_wrong_words_are_told_in_one_line(run, words, said):
    assert said in run(*words).error()
