"""``sonde edit WORD``: what its help teaches, and how a wrong word is told."""

import shlex

import pytest
import torch

import sonde
from sonde.cli.edits import EDITS, told_by
from sonde.weights import Exchange, RewritePlan


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


@pytest.mark.slow
@pytest.mark.parametrize("word", EDITS)
def test_the_example_of_every_word_runs(run, tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    if word == "undo":
        model = sonde.load("sonde:digits")
        name = next(n for n, x in model.module.state_dict().items() if x.ndim == 1)
        zeros = Exchange(torch.zeros_like(model.module.state_dict()[name]))
        RewritePlan.of(model, {name: zeros}).save(model, "NEW")
    words = shlex.split(told_by(EDITS[word], "Example"))
    flags = run(*words[1:3], "--help").out
    few = [["--limit", "8"]]
    if "--limit" in words:  # so few rows may do no more than chance
        few = [["--limit", "8"], ["--max-length", "16"], ["--force"]]
    few = [word for option in few if option[0] in flags for word in option]
    ran = run(*words[1:], *few)
    assert ran.code == 0, ran.err
    if "-o" in words:
        assert (tmp_path / words[words.index("-o") + 1]).exists()
