"""``score --fuse`` on arrays: a line more for each row, pages, what is refused in one line."""

import json

import pytest

from sonde.cli.score import Score
from sonde.run.scoring.fuse import COMBINED


@pytest.fixture(scope="module")
def calibrated(place, tmp_path_factory):
    from cli_case import run_words

    out = tmp_path_factory.mktemp("fuse") / "c.sonde"
    ran = run_words("calibrate", place / "probe.sonde", "-", place / "other.npz", "-o", out)
    assert ran.code == 0, ran.err
    return out


def test_the_words_are_the_rules():
    from typing import get_args, get_type_hints

    from sonde.run.scoring.fuse import AnyRule

    (words, _) = get_args(get_type_hints(Score)["fuse"])
    assert get_args(words) == get_args(AnyRule)
    assert set(COMBINED) < set(get_args(words))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sum", "twice_mean"])
def test_every_row_has_a_line_more(run, place, calibrated, tmp_path, rule):
    words = ("score", calibrated, "-", place / "rows.npz", "--each")
    plain = run(*words, "--json").json()
    ran = run(*words, "--fuse", rule, "-o", tmp_path / "s.parquet")
    assert ran.code == 0, ran.err
    assert f"fuse({rule})" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    found = run(*words, "--fuse", rule, "--json").json()
    assert found[: len(plain)] == plain
    lines = found[len(plain) :]
    assert len(lines) == 240
    assert {line["instrument"] for line in lines} == {f"fuse({rule})"}
    assert {line["site"] for line in lines} == {"a & b"}
    other = tmp_path / "o.parquet"
    assert run(*words[:3], place / "other.npz", "--each", "--fuse", rule, "-o", other).code == 0
    rows = run("evaluate", other, tmp_path / "s.parquet", "--resamples", "20", "--json").json()
    fused = next(r for r in rows["rows"] if r["instrument"] == f"fuse({rule})")
    assert fused["n_usual"] == 90
    assert fused["false_alarms"] <= 0.07


@pytest.mark.slow
def test_learned_needs_known_rows_and_pages_show_the_line(run, place, calibrated, tmp_path):
    words = ("score", calibrated, "-", place / "rows.npz", "--reduction", "rows", "--each")
    assert "--unusual" in run(*words, "--fuse", "learned").error()
    assert run(*words, "-o", tmp_path / "known.csv").code == 0
    known = ("--unusual", tmp_path / "known.csv")
    assert "--unusual" in run(*words, *known).error()
    page = tmp_path / "s.html"
    ran = run(*words, "--fuse", "learned", *known, "-o", page)
    assert ran.code == 0, ran.err
    assert "fuse(learned)" in page.read_text("utf-8")
    plain = ("score", place / "probe.sonde", "-", place / "rows.npz", "--fuse")
    assert "sonde calibrate" in run(*plain, "sum").error()
    assert json.loads(run(*plain, "simes", "--json").out)
