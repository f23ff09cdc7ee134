"""The runner of ``tools.figures``: rows are kept, a run that stopped goes on, words choose."""

import json
from importlib import import_module

import pytest
from tools.figures import intervals
from tools.figures.__main__ import NAMES, main

WORDS = ("intervals", "metrics.auroc", "--draws", "2", "--groups", "10")


@pytest.mark.slow
def test_rows_are_kept_and_a_later_run_goes_on(tmp_path, capsys, monkeypatch):
    kept = ("--into", str(tmp_path / "rows"))
    assert main([*WORDS, *kept, "--seconds", "-1"]) == 3
    assert capsys.readouterr().out.splitlines() == ["| interval | 10 groups |", "|---|---|"]
    assert main([*WORDS, *kept]) == 0
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == [
        "| metrics.auroc", "| metrics.auroc_within"
    ]  # fmt: skip
    assert len((tmp_path / "rows").read_text().splitlines()) == 2
    monkeypatch.setattr(intervals, "_cell", lambda *_: pytest.fail("a kept row is drawn again"))
    assert main([*WORDS, *kept, "--seconds", "-1"]) == 0
    assert capsys.readouterr().out == printed
    assert main([*WORDS[:3], "3", *WORDS[4:], *kept, "--seconds", "-1"]) == 3
    keys = [json.loads(line)[0] for line in (tmp_path / "rows").read_text().splitlines()]
    assert all("'draws': 2" in key for key in keys)


def test_every_figure_is_listed_with_its_purpose(capsys):
    assert main([]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [*lines] == NAMES
    assert all(callable(import_module(f"tools.figures.{name}").table) for name in NAMES)
    assert main(["no_such_figure"]) == 2
