"""``sonde explain``: pictures and texts, and what is refused."""

import json
import re

import pytest

from sonde.run.explaining import explanations as explaining


@pytest.mark.slow
def test_pictures_are_explained_and_drawn_where_asked(run, tmp_path):
    path = tmp_path / "explain.html"
    words = ("explain", "sonde:digits", "sonde:digits/test", "--limit", 4)
    few = ("--methods", "integrated_gradients(steps=8)")
    ran = run(*words, *few, "-o", path)
    assert ran.code == 0, ran.err
    assert "integrated_gradients(steps=8)" in ran.out
    page = path.read_text("utf-8")
    assert page.count("data:image/png") >= 8
    found = run(*words, "--methods", "saliency", "--target", 3, "--json").json()
    assert (found["schema"], found["objective"]) == ("sonde-explain/1", "logit[3]")
    assert (
        "no attribution is called 'mahalanobis'" in run(*words, "--methods", "mahalanobis").error()
    )
    assert "at most 256" in run(*words[:3], "--limit", 999).error()
    assert "a class or token id" in run(*words, "--target", "cat").error()


@pytest.mark.slow
@pytest.mark.truth("closed form: a linear net of one column")
def test_columns_of_a_table_are_named(run, tmp_path, monkeypatch):
    (tmp_path / "linear_net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def make():\n    net = nn.Linear(3, 2)\n"
        "    nn.init.zeros_(net.weight)\n    net.weight.data[1, 2] = 2.0\n    return net.eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = [f"{i % 3},{i % 5},{1 + i % 2}" for i in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["age,size,dose", *rows]))
    words = ("linear_net:make", tmp_path / "t.csv", "--methods", "grad_times_input", "--target", 1)
    found = run("explain", *words, "--json").json()
    assert found["places"] == ["age", "size", "dose"]
    page = tmp_path / "e.html"
    ran = run("explain", *words, "-o", page, "--id", "3", "line 2,2")
    assert "not tested yet" in ran.err.splitlines()[0]  # at once: not with the remarks, at the end
    assert ran.err.splitlines()[1].startswith("  line ")  # no hash: these rows have no id
    assert run("explain", *words, "-o", page).code == 0
    (first, *_) = re.findall(r"<th scope=.row.>(age|size|dose)", page.read_text("utf-8"))
    assert first == "dose"
    assert all(word in page.read_text("utf-8") for word in ("value", "mean of 12 fitted rows"))
    steps = (*words[:3], "integrated_gradients(steps=4)", *words[4:])
    (drawn, *_) = run("explain", *steps, "--json").json()["examples"]
    (made,) = drawn["attributions"].values()
    assert made["values"] == pytest.approx([0, 0, 2 * (1 - 1.5)], abs=1e-5)


@pytest.mark.slow
def test_methods_that_are_judged_are_kept_when_it_is_stopped(run, tmp_path, monkeypatch):
    words = ("explain", "sonde:digits", "sonde:digits/test", "--limit", 6)
    words = (*words, "--methods", "integrated_gradients(steps=4),saliency")
    whole, path = tmp_path / "whole.json", tmp_path / "why.json"
    assert run(*words, "-o", whole).code == 0
    judge, judged = explaining._judged, []

    def stopping(*arguments):
        judged.append(type(arguments[2]).__name__)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(explaining, "_judged", stopping)
    stopped = run(*words, "-o", path)
    assert stopped.code == 130
    assert "why.run" in stopped.err
    assert run(*words, "-o", path).code == 0
    assert judged == ["IntegratedGradients", "Saliency", "Saliency"]
    assert json.loads(path.read_text()) == json.loads(whole.read_text())
    assert not (tmp_path / "why.run").exists()


@pytest.mark.slow
def test_what_was_kept_of_other_inputs_is_not_taken(run, tmp_path, monkeypatch):
    path = tmp_path / "why.json"
    judge, judged = explaining._judged, []

    def stopping(*arguments):
        judged.append(len(arguments[1]))
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(explaining, "_judged", stopping)
    for limit in (4, 5):
        words = ("explain", "sonde:digits", "sonde:digits/test", "--limit", limit, "-o", path)
        run(*words, "--methods", "saliency,grad_times_input")
    assert judged == [4, 4, 5, 5]
