"""``score -o page.html``: written, ids hashed when asked, inputs only when asked."""

import pytest


def test_a_name_of_no_format_is_told_all_that_there_are(run, place, tmp_path):
    words = ("score", place / "probe.sonde", "-", place / "other.npz", "-o")
    line = run(*words, tmp_path / "scores.txt").error()
    assert "ends in .parquet, .csv, .json, .jsonl, .html, .htm, got scores.txt" in line


@pytest.mark.slow
def test_a_page_of_scores(run, place, tmp_path):
    words = ("score", place / "probe.sonde", "-", place / "other.npz", "--limit", "12")
    plain, more = tmp_path / "plain.html", tmp_path / "more.html"
    ran = run(*words, "-o", plain, "--examples", "2")
    assert ran.code == 0, ran.err
    page = plain.read_text("utf-8")
    assert page.count('<article class="card example"') == 4
    assert "Largest entries of the row" not in page
    rows = run(*words, "--json").json()
    ran = run(*words, "-o", more, "--examples", "2", "--show-inputs", "--hash-ids")
    assert ran.code == 0, ran.err
    page = more.read_text("utf-8")
    assert page.count("Largest entries of the row") >= 4
    assert not any(row["id"] in page for row in rows)
