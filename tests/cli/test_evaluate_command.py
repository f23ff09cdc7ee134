"""``calibrate`` and ``evaluate`` on arrays: tables, JSON, and what is wrong in one line."""

from pathlib import Path

import pytest


@pytest.mark.slow
def test_calibrate_then_evaluate(run, place, tmp_path):
    out = tmp_path / "c.sonde"
    ran = run("calibrate", place / "probe.sonde", "-", place / "other.npz", "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert {r["method"] for r in ran.json()["rows"]} == {"mahalanobis", "knn"}
    assert {r["n"] for r in ran.json()["rows"]} == {90}
    text = run("calibrate", place / "probe.sonde", "-", place / "other.npz", "-o", out).out
    assert max(map(len, text.splitlines())) <= 80
    words = ("evaluate", out, "-", place / "other.npz", place / "rows.npz", "--resamples", "50")
    found = run(*words, "--json").json()["rows"]
    assert len(found) == 4
    assert all(row["false_alarms"] <= 0.06 for row in found)
    assert run(*words, "--json").json()["usual"] == f"{place / 'other.npz'}, scored by {out}"
    text = run(*words).out
    assert max(map(len, text.splitlines())) <= 80
    assert "AUROC" in text
    assert "chosen on these same rows" in text
    assert "usual rows                  90 of" in text


@pytest.mark.slow
def test_pictures_are_written(run, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shift in (("usual", 0), ("unusual", 2)):
        lines = [f"r{i},0,h.0:out,knn,{i % 7 + shift},0.5" for i in range(30)]
        Path(f"{name}.csv").write_text("\n".join(["id,position,site,instrument,score,p", *lines]))
    words = ("evaluate", "usual.csv", "unusual.csv", "--resamples", "10", "-o")
    for name in ("e.html", "e.svg"):
        ran = run(*words, name)
        assert ran.code == 0, ran.err
        assert f"wrote {name}" in ran.err
        assert "knn" in Path(name).read_text("utf-8")
    assert "30 of unusual.csv" in Path("e.html").read_text("utf-8")
    assert ".html, .htm, .svg, .png" in run(*words, "e.pdf").error()
    assert "folders of rows, got 1 word." in run("evaluate", "usual.csv").error()
    assert "there is no folder" in run(*words, "none/e.html").error()


def test_quiet_prints_only_what_was_written(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"r{i},s,knn,{i % 7},0.5" for i in range(30)]
    Path("a.csv").write_text("\n".join(["id,site,instrument,score,p", *lines]))
    words = ("evaluate", "a.csv", "a.csv", "--resamples", "10", "--quiet")
    ran = run(*words)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    ran = run(*words, "-o", "e.svg")
    assert (ran.code, ran.out, ran.err) == (0, "", "wrote e.svg\n")
    assert run(*words, "--json").json()["rows"][0]["site"] == "s"


def test_missing_and_infinite_scores_are_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head, lines = "id,site,instrument,score,p", [f"r{i},s,knn,{i % 7},0.5" for i in range(9)]
    Path("a.csv").write_text("\n".join([head, *lines]))
    Path("b.csv").write_text("\n".join([head, *lines, "x,s,knn,,0.5", "y,s,knn,inf,0.5"]))
    words = ("--resamples", "0")
    ran = run("evaluate", "a.csv", "b.csv", *words)
    assert "2 of 11 scores of unusual rows are missing or infinite" in ran.err
    assert "scores of usual rows" not in ran.err
    (row,) = [line for line in ran.out.splitlines() if line.startswith("knn")]
    assert row.split()[2:4] == ["0.591", "–"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "a.csv"], "expected USUAL UNUSUAL"),
        (["evaluate", "a.csv", "b.csv"], "no such file: a.csv"),
        (["evaluate", "a.csv", "b.csv", "--alpha", "2"], "--alpha"),
        (["calibrate", "probe.sonde", "-", "rows.npz", "-o", "x.sonde"], "not fitted on"),
        (["calibrate", "probe.sonde", "-", "narrow.npz", "-o", "x.sonde"], "expected dim=5"),
    ],
)
def test_what_is_wrong_is_told(run, place, monkeypatch, words, said):
    monkeypatch.chdir(place)
    assert said in run(*words).error()
    assert not (place / "x.sonde").exists()
