"""What ``sonde fit`` prints: figures of every site, missing labels, and how p-values mislead."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.cli import _table
from sonde.cli._fitted import remarks
from sonde.cli._table import filled, legend, middle, table
from sonde.core.result import FLAGS


@pytest.fixture(scope="module")
def words(place):
    return ["fit", "mahalanobis,relative_mahalanobis,knn(k=5),spectrum", "-", place / "rows.npz"]


@pytest.mark.truth("numpy on the rows that score says")
def test_detectors_print_rows_classes_and_threshold(run, place, tmp_path, words):
    ran = run(*words, "-o", tmp_path / "a.sonde", "--json")
    rows = {(r["method"], r["site"]): r for r in ran.json()["results"]}
    row = rows["mahalanobis", "a"]
    assert (row["n"] + row["n_held"], row["n_classes"]) == (240, 3)
    assert rows["relative_mahalanobis", "a"]["n_classes"] == 3
    assert rows["knn", "a"]["n_classes"] is None
    assert rows["spectrum", "a"]["n_values"] == 5
    scored = run("score", tmp_path / "a.sonde", "-", place / "rows.npz", "--each", "--json").json()
    mine = [r for r in scored if (r["instrument"], r["site"]) == ("mahalanobis", "a")]
    alarmed = np.array([r["score"] > row["threshold"] for r in mine])
    assert np.array_equal(alarmed, [r["p"] <= 0.05 for r in mine])
    assert alarmed.any()


def test_too_few_rows_for_an_alarm_are_said_with_how_many_it_takes(run, place, tmp_path, words):
    few = run(*words, "--limit", "60", "-o", tmp_path / "few.sonde")
    assert "too few" in few.out
    n = [r["n_held"] for r in run(*words, "--limit", "60", "-o", tmp_path / "f", "--json").json()
         ["results"] if r["n_held"]]  # fmt: skip
    said = f"alarms at 0.05 need at least 19 held-out rows, got {min(n)}"
    assert said in " ".join(few.err.split())
    assert "alarms at 0.05 need" not in run(*words, "-o", tmp_path / "a.sonde").err


def test_flags_reach_every_command_with_what_they_mean(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4)).astype("f4")
    data, probe = tmp_path / "x.npz", tmp_path / "p.sonde"
    np.savez(data, a=np.column_stack([x, x[:, 0]]))
    words = ["fit", "mahalanobis(shrinkage=0.0)", "-", data, "--calibrate", "0", "-o", probe]
    meaning = FLAGS["rank_deficient"]
    said = f"rank_deficient: {meaning} (mahalanobis at a)"
    place = [{"method": "mahalanobis", "site": "a"}]
    want = {"flag": "rank_deficient", "meaning": meaning, "at": place}
    assert run(*words).err.count(said) == 1
    fitted = run(*words, "--json").json()
    assert fitted["flags"] == [want]
    assert fitted["results"][0]["flags"] == ["rank_deficient"]
    assert run("info", probe, "--json").json()["flags"] == [want]
    assert said in " ".join(run("info", probe).out.split())
    scored = run("score", probe, "-", data, "--json")
    assert scored.json()[0]["flags"] == ["rank_deficient"]
    assert run("score", probe, "-", data).err.count(said) == 1


def test_no_line_of_dashes(run, tmp_path, words):
    ran = run(*words, "-o", tmp_path / "a.sonde")
    assert not [line for line in ran.out.splitlines() if line.rstrip().endswith(" -")]
    assert "held out" in ran.out
    assert "5 values" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_fit_says_how_to_calibrate_on_unseen_rows(run, tmp_path, words):
    ran = run(*words, "-o", tmp_path / "a.sonde")
    (line,) = [line for line in ran.err.splitlines() if "p-values" in line]
    assert f"sonde calibrate {tmp_path / 'a.sonde'} - UNSEEN" in line
    measures = run("fit", "spectrum", *words[2:], "-o", tmp_path / "b.sonde")
    assert "p-values" not in measures.err
    without = run(*words, "-o", tmp_path / "c.sonde", "--calibrate", "0")
    assert "p-values" not in without.err


@pytest.mark.parametrize("word", ["fit", "score"])
def test_help_says_it_too(run, word):
    text = " ".join(run(word, "--help").out.split())
    assert "sonde calibrate" in text
    assert "trained" in text


def test_missing_labels_are_said_once(run, place, tmp_path, words):
    ran = run("fit", "mahalanobis,knn", "-", place / "plain.npz", "-o", tmp_path / "a.sonde")
    (line,) = [line for line in ran.err.splitlines() if "no labels" in line]
    assert "mahalanobis treated all rows as one class" in line
    assert "no labels" not in run(*words, "-o", tmp_path / "b.sonde").err


def test_too_few_held_rows_are_said(run, place, tmp_path):
    ran = run("fit", "knn", "-", place / "one_class.npz", "-o", tmp_path / "a.sonde",
              "--calibrate", "0.03", "--json")  # fmt: skip
    assert {r["threshold"] for r in ran.json()["results"]} == {None}


def test_tables_fill_the_terminal_and_names_are_whole_in_a_pipe(monkeypatch):
    rows = [("knn", "model.layers.11.mlp.down_proj.with.a.very.long.name", "12")]
    assert rows[0][1] in table(("method", "site", "n"), rows)
    monkeypatch.setattr(_table, "terminal_width", lambda: 40)
    text = table(("method", "site", "n"), rows)
    assert max(map(len, text.splitlines())) == 40
    assert "long.name" in text
    assert middle("abcdef", 6) == "abcdef"


def test_tables_say_what_their_words_mean(run, place, tmp_path, words):
    ran = run("fit", "mahalanobis,cka,norms,spectrum", *words[2:], "-o", tmp_path / "a.sonde")
    meanings = {line[:11].strip(): line for line in ran.out.splitlines() if line[:11].strip()}
    assert "raises an alarm (higher =" in meanings["alarm at 5%"]
    assert "calibration" in meanings["held out"]
    assert "Range: [0, inf), in units of the rows; higher = longer rows." in " ".join(
        ran.out.split()
    )
    assert "standard error" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    again = run("calibrate", tmp_path / "a.sonde", "-", place / "other.npz", "-o",
                tmp_path / "b.sonde", "--alpha", "0.1")  # fmt: skip
    assert "alarm at 10%" in again.out
    assert "higher = more anomalous" in " ".join(again.out.split())
    assert "true rate     90 % interval" in again.out
    assert max(map(len, again.out.splitlines())) <= 80


def test_many_sites_in_one_answer_keep_a_line_short(run, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.mlp.down_proj:out" for i in range(12)]
    sites: dict[str, Any] = {name: rng.normal(size=(60, 3)) for name in names}
    np.savez(tmp_path / "deep.npz", label=np.arange(60) % 2, **sites)
    words = ("-", tmp_path / "deep.npz", "-o", tmp_path / "a.sonde")
    ran = run("fit", "layer_cka,cka,clue", *words)
    assert "model.layers.{0..11}.mlp.down_proj:out (12)" in ran.out
    assert "model.layers.{10,11}.mlp.down_proj:out" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


def test_a_legend_is_wrapped(monkeypatch):
    monkeypatch.setattr(_table, "terminal_width", lambda: 40)
    lines = legend({"se": "standard error " * 6, "rows": "few"}).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("se    standard")
    assert lines[1].startswith("      ")
    assert lines[-1] == "rows  few"


def test_a_broken_command_can_be_copied(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    command = "sonde fit mahalanobis,knn model data -o probe.sonde"
    text = filled(f"Example: {command}")
    assert max(map(len, text.splitlines())) <= 30
    pasted = subprocess.run(["sh", "-c", f"echo {text[9:]}"], capture_output=True, text=True)
    assert pasted.stdout == f"{command}\n"
    assert "\\" not in filled(f"More: {command}; and further words")


def test_what_is_replaced_is_said(run, place, tmp_path):
    data, probe = place / "rows.npz", tmp_path / "p.sonde"
    first = run("fit", "mahalanobis", "-", data, "-o", probe, "--limit", "200")
    assert "in place of" not in first.err
    second = run("fit", "knn(k=5)", "-", data, "-o", probe)
    assert re.search(r"p\.sonde \([1-9]\d* KiB\), replacing mahalanobis on 200", second.err)
    again = run("calibrate", probe, "-", place / "other.npz", "-o", probe)
    assert "replacing knn on 240 examples" in again.err
    (tmp_path / "m.sonde").write_text("notes")
    parts = [tmp_path / "a.sonde", tmp_path / "b.sonde"]
    for part, source in zip(parts, ("plain.npz", "more.npz"), strict=True):
        assert run("fit", "spectrum", "-", place / source, "-o", part).code == 0
    merged = run("merge", *parts, "-o", tmp_path / "m.sonde")
    assert merged.code == 0, merged.err
    assert "240 examples, replacing another file" in merged.err


def test_the_command_to_calibrate_keeps_how_data_are_read():
    rows = [{"method": "knn", "n_classes": None, "n_held": 90}]
    typed = {"text_column": "body", "sites": ("a", "b"), "limit": 9, "dtype": "bfloat16"}
    typed |= {"max_length": 9, "id_column": "key"}
    (said,) = remarks(rows, Path("p.sonde"), "net", "a.csv", typed)
    assert "run sonde calibrate p.sonde net UNSEEN --dtype bfloat16 --id-column key, " in said


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit spectrum", "scan"])
def test_how_items_were_read_is_said(run, tmp_path, monkeypatch, command):
    (tmp_path / "nets_of_notes.py").write_text(NETS)
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n3,4\n5,x\n" * 30)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*command.split(), "nets_of_notes:make", "t.csv", "--skip-bad", "-o", "o.json"]
    ran = run(*words)
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("note: ")]
    assert lines[0] == "note: 2 columns of numbers are read as one vector: a, b."
    assert lines[1].startswith("note: 30 items were skipped: t.csv line 4: expected a number")


NETS = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
"""


@pytest.mark.slow
@pytest.mark.truth("the rows of the file: a method without a state is calibrated on a fifth")
def test_methods_of_logits_ask_a_language_model_for_them(run, tmp_path):
    data = tmp_path / "t.jsonl"
    data.write_text("".join(f'{{"text": "x = {i}"}}\n' for i in range(40)))
    ran = run("fit", "msp,energy", "sonde:stdlib", data, "-o", tmp_path / "p.sonde", "--json")
    assert ran.code == 0, ran.err
    rows = ran.json()["results"]
    assert [r["method"] for r in rows] == ["msp", "energy"]
    assert {r["n"] + r["n_held"] for r in rows} == {40}
    scored = run("score", tmp_path / "p.sonde", "sonde:stdlib", data, "--each", "--json").json()
    assert len(scored) == 80


def test_missing_logits_are_named(run, place, tmp_path):
    ran = run("fit", "msp", "-", place / "rows.npz", "-o", tmp_path / "p.sonde")
    assert ran.code == 2
    assert "logits" in ran.err
    assert not (tmp_path / "p.sonde").exists()


@pytest.mark.slow
@pytest.mark.truth("two groups of equal variance whose means are four deviations apart")
def test_a_probe_says_how_far_its_class_lies(run, tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(4000) % 2
    rows = rng.normal(size=(4000, 3)).astype("f4")
    rows[:, 1] += 4 * label
    np.savez(tmp_path / "two.npz", a=rows, label=label)
    words = ("fit", "linear_probe", "-", tmp_path / "two.npz", "-o", tmp_path / "p.sonde")
    ran = run(*words, "--json")
    (row,) = ran.json()["results"]
    assert row["positive"] == 1
    assert row["value"] == pytest.approx(4.0, abs=0.15)
    (line,) = [line for line in run(*words).err.splitlines() if "over the fitted rows" in line]
    assert f"the means of class 1 and of the other rows lie {row['value']:.4g} apart" in line
