"""``evaluate`` with --errors, --steps, --masks: the page's commands, what is wrong in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "look_at_scores.md"
HEAD = "id,row,position,site,instrument,score,p"


@pytest.fixture
def answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"answer {i}", "wrong": int(i % 3 == 0), "group": f"g{i // 4}"}
            for i in range(24)]  # fmt: skip
    Path("answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [f"r{i},{i},0,h.0:out,knn,{i % 5 - 2 * (i % 3)},0.5" for i in range(24)]
    Path("scores.csv").write_text("\n".join([HEAD, *lines]))
    return tmp_path


def test_errors_are_told_as_text_and_json(run, answers):
    words = ("evaluate", "scores.csv", "answers.jsonl", "--errors", "wrong", "--resamples", "50")
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "PRR" in ran.out
    found = run(*words, "--json").json()
    (row,) = found["rows"]
    assert found["resamples"] == 50
    assert row["groups"] == 6
    for figure in (f"{row['prr']:.3f}", f"{row['prr_low']:.3f} to {row['prr_high']:.3f}"):
        assert figure in ran.out.splitlines()[1]
    ran = run(*words, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.truth("by hand: the share of wrong answers; scikit-learn within each value")
def test_errors_are_told_for_each_value_of_a_column(run, answers):
    from sklearn.metrics import roc_auc_score

    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    rows = [{**row, "clinic": ("n", "s", "w")[i % 3 if i < 12 else i % 2]}
            for i, row in enumerate(rows)]  # fmt: skip
    Path("answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("evaluate", "scores.csv", "answers.jsonl", "--errors", "wrong", "--resamples", "20")
    ran = run(*words, "--by", "clinic")
    assert ran.code == 0, ran.err
    found = {row["value"]: row for row in run(*words, "--by", "clinic", "--json").json()["by"]}
    for value in "nsw":
        mine = [i for i, row in enumerate(rows) if row["clinic"] == value]
        wrong = [rows[i]["wrong"] for i in mine]
        assert (found[value]["n"], found[value]["wrong"]) == (len(mine), np.mean(wrong))
        if len(set(wrong)) > 1:
            want = roc_auc_score(wrong, [i % 5 - 2 * (i % 3) for i in mine])
            assert found[value]["auroc"] == pytest.approx(want)
            assert f"{want:.3f}" in ran.out.partition("clinic")[2]
    assert found["w"]["auroc"] is None
    assert "expected --errors COLUMN with it" in run(*words[:3], "--by", "clinic").error()


def test_steps_are_told(run, answers):
    rows = [{"steps": ["a", "b"], "first_error": i % 2 - 1 + i % 2} for i in range(8)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [f"r{i},{i},{s},h.0:out,knn,{s + i},{0.01 if s else 0.5}"
             for i in range(8) for s in (0, 1)]  # fmt: skip
    Path("steps.csv").write_text("\n".join([HEAD, *lines]))
    words = ("evaluate", "steps.csv", "t.jsonl", "--steps", "--resamples", "50")
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert max(map(len, ran.out.splitlines())) <= 80
    (row,) = run(*words, "--json").json()["rows"]
    assert (row["localised"], row["n"], row["n_wrong"]) == (1.0, 8, 4)
    (row,) = run(*words, "--alpha", "0.001", "--json").json()["rows"]
    assert row["joint"] == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["answers.jsonl", "--errors", "wrong", "--steps"], "one of --errors, --steps and --masks"),
        (["answers.jsonl", "--errors", "wrong", "-o", "e.html"], "without -o"),
        (["answers.jsonl", "x", "--errors", "wrong"], "with SCORES DATA"),
        (["answers.jsonl", "--errors", "text"], "got 'answer 0' for item 0"),
        (["answers.jsonl", "--errors", "wrnog"], "Did you mean"),
        (["answers.jsonl", "--steps"], "no column 'steps'"),
        (["answers.jsonl", "--masks", "nowhere"], "or a folder of masks, got 'nowhere'"),
        (["missing.jsonl", "--errors", "wrong"], "no such file or folder: missing.jsonl"),
        (["scores.csv", "--sigma", "1"], "expected --masks"),
    ],
)
def test_what_is_wrong_is_told(run, answers, words, said):
    assert said in run("evaluate", "scores.csv", *words).error()


@pytest.mark.slow
def test_the_commands_of_the_page_find_planted_places(run, tmp_path, monkeypatch):
    """A square of light on digits is found where it is, by what the page says to type."""
    from sonde.data.opening import open_source

    monkeypatch.chdir(tmp_path)
    rows = list(open_source("sonde:digits/train")[0].rows())[:90]
    for folder in ("usual", "new/plain", "new/lit", "masks/lit"):
        (tmp_path / folder).mkdir(parents=True)
    for i, row in enumerate(rows):
        image = np.array(row["image"])
        lit = i >= 75
        if lit:
            mask = np.zeros(image.shape[:2], dtype=np.uint8)
            mask[4:, :4] = 255
            image[4:, :4] = image.max() - image[4:, :4]
            Image.fromarray(mask).save(f"masks/lit/{i}_mask.png")
        where = "usual" if i < 60 else "new/lit" if lit else "new/plain"
        Image.fromarray(image).save(f"{where}/{i}.png")
    page = PAGE.read_text(encoding="utf-8")
    commands = [line for line in re.findall(r"^sonde (.*)$", page, re.M) if "masks" in line
                or "patches" in line or "padim" in line]  # fmt: skip
    assert len(commands) == 3
    ran = None
    for command in commands:
        words = command.replace("MODEL", "sonde:digits").split()
        more = ["--sites", "layers.1"] if words[0] == "fit" else []
        ran = run(
            *words, *more, *(["--resamples", "20", "--json"] if words[0] == "evaluate" else [])
        )
        assert ran.code == 0, ran.err
    assert ran is not None
    (row,) = ran.json()["rows"]
    assert (row["n"], row["n_masked"]) == (30, 15)
    assert row["pixel_auroc"] > 0.8
    assert row["aupro"] > 0.5
