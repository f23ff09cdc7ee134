"""``sonde edit attention`` says which layers need to look far, as text, JSON and a page."""

import json

import pytest

from cli_case import run_words

WORDS = ("edit", "attention", "sonde:stdlib", "sonde:stdlib/test", "--limit", "4")
LAST = ("--sites", "layers.6", "--max-kl", "1e-4")
SHORT = (*WORDS, "--max-length", "48")


@pytest.mark.slow
def test_a_window_as_long_as_the_text_costs_nothing_and_a_short_one_something(tmp_path):
    page = tmp_path / "page.html"
    wide = run_words(*SHORT, "--pattern", "window:48", "--json").json()
    assert [row[5] for row in wide["tables"][0]["rows"]] == ["near"] * 7 + [""]
    assert max(abs(row[1]) for row in wide["tables"][0]["rows"]) < 1e-5
    assert wide["notes"][0].startswith("No layer clearly needs attention beyond window:48")
    ran = run_words(*SHORT, "--pattern", "window:1", *LAST, "--report", str(page))
    assert ran.code == 0, ran.err
    assert "model.layers.6.self_attn" in ran.out
    assert "1 of 1 layer needs attention beyond window:1" in " ".join(ran.out.split())
    assert "Result of sonde edit attention" in page.read_text()
    quiet = run_words(*SHORT, "--pattern", "window:1", *LAST, "--quiet")
    assert len(quiet.out.splitlines()) == 1
    assert json.loads(json.dumps(wide)) == wide


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pattern", "windows:8"), "expected a pattern of an attention among all, axial:AXIS"),
        (("--pattern", "axial"), "expected grid=(height, width) for axial"),
        (("--pattern", "axial", "--grid", "7by7"), "--grid: expected HxW"),
        (("--report", "page.txt"), "--report: expected a name that ends in .html or .json"),
        (("--sites", "layers.99"), "layers.99"),
    ],
)
def test_bad_input_is_one_line(words, message):
    assert message in run_words(*SHORT, *words).error()
