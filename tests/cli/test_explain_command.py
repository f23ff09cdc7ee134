"""``sonde explain``: pictures and texts, and what is refused."""

import re

import pytest


def test_pictures_are_explained_and_drawn_where_asked(run, tmp_path):
    path = tmp_path / "explain.html"
    words = ("explain", "sonde:digits", "sonde:digits/test", "--limit", 4)
    few = ("--methods", "integrated_gradients(steps=8)")
    ran = run(*words, *few, "-o", path, "--show-inputs")
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


@pytest.mark.truth("a linear net whose answer hangs on one column")
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
    assert run("explain", *words, "-o", page).code == 0
    (first, *_) = re.findall(r"<th scope=.row.>(age|size|dose)", page.read_text("utf-8"))
    assert first == "dose"
