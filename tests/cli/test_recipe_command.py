"""``sonde recipe``: lists questions, and asks them of models and data by name."""

import json
import sys
import textwrap

import pytest
from PIL import Image

from sonde_studies import recipes

WEAK = """
    import torch
    from torch import nn

    def noisy():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4))

    def pixels():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_recipe.py").write_text(textwrap.dedent(WEAK))
    rows = [{"a": i % 7 / 7, "b": i % 5 / 5, "c": i % 3 / 3, "label": i % 4} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("nets_of_a_recipe", None)


@pytest.mark.truth("the names that the package exports")
def test_recipes_are_listed_by_question(run):
    assert [line.split()[0] for line in run("recipe").out.splitlines()] == list(recipes.RECIPES)
    listed = run("recipe", "--json").json()
    assert all(entry["question"].endswith("?") for entry in listed)


@pytest.mark.parametrize("word", recipes.RECIPES)
def test_help_says_what_each_needs(run, word):
    ran = run("recipe", word, "--help")
    assert ran.code == 0
    assert f"Example: sonde recipe {word}" in ran.out
    assert "A model is a Hugging Face directory" in ran.out
    assert "\n│               (default" not in ran.out, "an argument without a sentence"


def test_the_name_is_optional_and_comes_first(run):
    assert "[NAME]" in run("recipe", "--help").out
    assert "[NAME]" in run("study", "--help").out
    assert "expected the recipe first" in run("recipe", "--json", "missing-view").error()


def test_an_unknown_recipe_is_one_line(run):
    assert "Did you mean route-by-score?" in run("recipe", "route-by-scor").error()


def test_missing_words_are_named(run):
    assert "expected STRONG DATA" in run("recipe", "route-by-score", "weak").error()


@pytest.mark.slow
def test_it_answers_writes_a_page_and_ends_as_asked(run, place):
    models = ["nets_of_a_recipe:noisy"] * 2
    words = ["recipe", "route-by-score", *models, "rows.jsonl", "-o", "a.html"]
    ran = run(*words, "--fail-on", "warning", "--json")
    assert ran.code == 1, ran.err
    found = ran.json()
    assert found["verdict"] == "no gain"
    assert found["inputs"] == {"weak": models[0], "strong": models[0], "data": "rows.jsonl"}
    page = (place / "a.html").read_text("utf-8")
    assert found["question"] in page
    assert found["sentence"].replace("'", "&#x27;")[:40] in page
    assert run("info", "a.html", "--json").json()["recipe"] == "route-by-score"
    assert run("verify", "a.html").code == 0
    assert run(*words, "--fail-on", "error").code == 0


@pytest.mark.slow
def test_data_that_may_be_left_out_are_a_word(run, place):
    one = ["recipe", "unlearning-audit", *["nets_of_a_recipe:noisy"] * 2, *["rows.jsonl"] * 2]
    without, held = (run(*one, "--of-class", "3", *more, "--json")
                     for more in ((), ("--held", "rows.jsonl")))  # fmt: skip
    assert held.code == 0, held.err
    attack = {key for key in held.json()["facts"] if key.startswith("attack by low loss")}
    assert attack
    assert not attack & set(without.json()["facts"])


def test_a_page_of_another_kind_is_refused_before_anything_runs(run, place):
    said = run("recipe", "route-by-score", "a", "b", "rows.jsonl", "-o", "a.pdf").error()
    assert "ends in .html or .json" in said


def test_a_bare_net_on_a_folder_of_pictures_is_asked_with_the_flags_of_scan(run, place):
    for i in range(60):
        folder = place / "pictures" / ("dark", "light")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 + 150 * (i % 2) + i).save(folder / f"{i}.png")
    net = "nets_of_a_recipe:pixels"
    words = ("recipe", "stage-swap", net, net, "pictures", "--classes", "dark,light", "--json")
    found = run(*words, "--image-mean", "0", "--image-std", "1").json()
    assert found["n"] == 30  # the other half fits the maps
    assert "expected both or none" in run(*words, "--image-mean", "0").error()
    assert "--image-mean and --image-std missing" in run(*words).error()
