"""The page of figures is what the benchmarks wrote: nobody edits it by hand."""

import json

import pytest
from benchmarks.__main__ import main
from benchmarks.page import BEGIN, END, FIGURES, PAGE, with_figures, write_page
from benchmarks.rows import Row, not_measured, versions

ROWS = [
    Row("tap", "a tapped forward", 1.01, budget=1.03, spread=0.02, note="plain 5 ms"),
    not_measured("cka", "against a peer", "not installed"),
]


def test_the_page_shows_the_figures_that_stand_in_the_file():
    assert PAGE.read_text() == with_figures(PAGE.read_text(), json.loads(FIGURES.read_text()))


def test_rows_take_the_place_of_those_of_their_benchmark_alone(tmp_path):
    page, figures = tmp_path / "page.md", tmp_path / "page.json"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(ROWS, versions(), page, figures)
    write_page([Row("tap", "another", 2.0, budget=1.5)], versions(), page, figures)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "a tapped forward" not in text
    assert "| `tap` | another | 2.000 x | 1.500 x |  | over |  |" in text
    assert "| `cka` | against a peer | - |  |  | not measured | not installed |" in text
    assert list(json.loads(figures.read_text())) == ["tap", "cka"]


def test_a_page_without_a_place_and_toy_figures_are_refused(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks <!-- figures -->"):
        write_page(ROWS, versions(), page, tmp_path / "page.json")
    with pytest.raises(SystemExit):
        main(["--tiny", "--write"])
    assert "toy sizes" in capsys.readouterr().err
