"""What ``sonde score`` prints: medians, alarms, what words mean, and the oddest rows."""

import numpy as np
import pytest

from sonde.cli import _table
from sonde.cli._scored import _called


@pytest.mark.truth("numpy on the lines of --json")
def test_a_table_of_scores_says_what_its_numbers_are(run, place):
    words = ("score", place / "probe.sonde", "-", place / "other.npz", "--alpha", "0.1", "--each")
    lines, text = run(*words, "--json").json(), run(*words).out
    mine = [r for r in lines if (r["instrument"], r["site"]) == ("knn", "a")]
    median = np.quantile([r["score"] for r in mine], 0.5, method="inverted_cdf")
    alarms = np.mean([r["p"] <= 0.1 for r in mine])
    assert f"{median:.4g}" in text
    assert f"{alarms:.1%}" in text
    assert "higher = more anomalous" in " ".join(text.split())
    assert "about 10% of rows like the calibration rows raise an alarm" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_what_explains_a_row_is_wrapped_and_tells_no_position_of_whole_rows(
    run, place, monkeypatch
):
    words = ("score", place / "probe.sonde", "-", place / "other.npz", "--explain", "5")
    text = run(*words).out.partition("most anomalous:")[2]
    assert "units" in text
    assert "layers" in text
    assert "position" not in text
    assert max(map(len, text.splitlines())) <= 80
    monkeypatch.setattr(_table, "terminal_width", lambda: 45)
    monkeypatch.setattr("sonde.cli._scored.terminal_width", lambda: 45)
    text = run(*words).out.partition("most anomalous:")[2]
    assert max(map(len, text.splitlines())) <= 45


@pytest.mark.slow
@pytest.mark.truth("the line of the file that was changed")
def test_the_most_unusual_rows_are_named_by_their_place(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "line_net.py").write_text(NET.replace("Conv2d(1, 3, 2)", "Linear(2, 3)"))
    rows = np.random.default_rng(0).normal(size=(60, 2)).round(3).tolist()
    rows[41] = [90.0, -70.0]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["a,b", *(f"{a},{b}" for a, b in rows)]))
    words, probe = ("line_net:make", table), tmp_path / "p.sonde"
    ran = run("fit", "knn(k=2)", *words, "--limit", "40", "-o", probe)
    assert ran.code == 0, ran.err
    first = run("score", probe, *words, "--explain", "1").out.partition("most anomalous:\n")[2]
    assert first.startswith("  row 41, line 43 (")
    first = run("score", probe, *words, "--explain", "1", "--hash-ids").out
    assert first.partition("most anomalous:\n")[2].startswith("  row 41 (")


@pytest.mark.slow
@pytest.mark.truth("the line of least p-value and highest score in --json")
def test_the_position_is_told_where_an_example_has_several_rows(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "patch_net.py").write_text(NET)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(60, 1, 4, 4)).astype("f4"))
    words, probe = ("patch_net:make", tmp_path / "x.npz"), tmp_path / "p.sonde"
    ran = run("fit", "knn(k=2)", *words, "--reducer", "patches", "-o", probe)
    assert ran.code == 0, ran.err
    best = min(
        run("score", probe, *words, "--each", "--json").json(), key=lambda r: (r["p"], -r["score"])
    )
    text = run("score", probe, *words, "--explain", "1").out
    assert f"position {best['position']}:" in text


NET = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 2), torch.nn.ReLU()).eval()
"""


@pytest.mark.slow
def test_detectors_that_cannot_name_units_are_said(run, place, tmp_path):
    probe = tmp_path / "probe.sonde"
    run("fit", "mahalanobis,mass_mean", "-", place / "rows.npz", "-o", probe)
    ran = run("score", probe, "-", place / "rows.npz", "--explain", "1")
    (line,) = [line for line in ran.err.splitlines() if "no units" in line]
    assert "no units: mass_mean cannot attribute" in line
    without = run("score", probe, "-", place / "rows.npz")
    assert "no units" not in without.err


@pytest.mark.slow
@pytest.mark.truth("the long table: the smallest p of each input times the detectors and sites")
def test_each_input_is_one_line_with_a_verdict(run, place, tmp_path):
    words = ("score", place / "probe.sonde", "-", place / "other.npz", "--fuse", "bonferroni")
    long = run(*words[:4], "--each", "--json").json()
    least = {}
    for line in long:
        least[f"{line['row']}"] = min(least.get(f"{line['row']}", 1), line["p"])
    ran = run(*words, "--alarm", "0.1")
    shown = [line.split() for line in ran.out.splitlines() if line.startswith("row ")]
    assert [line[1] for line in shown] == [f"{n}" for n in range(90)]
    assert {line[1]: line[-2:] for line in shown} == {
        name: [f"{4 * p:.3g}", "alarm" if 4 * p <= 0.1 else "no"] for name, p in least.items()
    }
    assert "90 of 90 inputs raise an alarm at 0.1." in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    ran = run(*words, "-o", tmp_path / "s.csv")
    assert sum(line.startswith("row ") for line in ran.out.splitlines()) == 5
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 91
    usual = run(*words[:3], place / "rows.npz", *words[4:], "-o", tmp_path / "u.csv")
    assert usual.code == 0, usual.err
    told = run("evaluate", tmp_path / "u.csv", tmp_path / "s.csv", "--resamples", "9", "--json")
    assert [r["instrument"] for r in told.json()["rows"]] == ["fuse(bonferroni)"]


def test_rows_without_ids_are_called_by_their_place():
    digest = "0330602ffdc220c9ea64719f2ad3be49"
    assert _called({"place": "square/059.png", "id": digest}) == "square/059.png"
    assert _called({"place": None, "id": digest}) == digest
    assert _called({"place": "line 3", "id": "person 7"}) == "person 7 (line 3)"
