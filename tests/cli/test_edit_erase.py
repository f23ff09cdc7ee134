"""``sonde edit erase`` and ``rewrite-fact``: what they write, report and refuse."""

import json
from dataclasses import replace

import pytest
import torch

import sonde
from sonde.edit import Fact, log_probability
from sonde.edit._facts import PREFIXES

PROSE = [f"    The value number {i} is returned to the caller, unless empty.\n" for i in range(6)]
CODE = [f"        self._x{i} = y[{i}] or z.call(a={i}, b=[q for q in r])\n" for i in range(6)]


@pytest.fixture
def texts(tmp_path):
    for name, lines in (("prose", PROSE), ("code", CODE)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return tmp_path


def states(model, site, texts):
    with torch.no_grad(), sonde.Tap(model, site) as tap:
        found = []
        for text in texts:
            model.module(torch.tensor([list(text.encode())]))
            found.append(tap.rows[f"model.{site}:out"][0])
    return torch.cat(found).double()


@pytest.mark.slow
def test_the_means_of_both_sides_are_equal_in_the_written_model(run, tmp_path, texts):
    new, site = tmp_path / "new", "layers.1.mlp.down_proj"
    sides = ("--positive", texts / "prose.jsonl", "--negative", texts / "code.jsonl")
    words = ("edit", "erase", "sonde:stdlib", *sides, "--site", site, "-o", new, "--json")
    ran = run(*words, "--force")
    assert ran.code == 0, ran.err
    found = ran.json()
    assert (found["word"], (tmp_path / "new.html").is_file()) == ("erase", True)
    probes = found["tables"][0]["rows"]
    assert [row[0] for row in probes][:2] == [f"model.{site}:out", "model.layers.1:out"]
    assert probes[-1][0] == "model.layers.6:out"
    plain, edited = sonde.load("sonde:stdlib"), sonde.load(str(new))
    gaps = [
        states(model, site, PROSE).mean(0) - states(model, site, CODE).mean(0)
        for model in (plain, edited)
    ]
    assert float(gaps[1].norm() / gaps[0].norm()) < 1e-4
    assert run(*words, "--force").code == 2


@pytest.mark.slow
@pytest.mark.truth("means of the states of the written model, class by class")
def test_the_classes_of_a_column_are_erased(run, tmp_path):
    """Of three classes, which a column other than ``label`` names, all means are one."""
    kinds = {"prose": PROSE, "code": CODE, "upper": [line.upper() for line in PROSE]}
    data, new, site = tmp_path / "data.jsonl", tmp_path / "new", "layers.1.mlp.down_proj"
    rows = [{"text": x, "kind": kind} for kind, lines in kinds.items() for x in lines]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("edit", "erase", "sonde:stdlib", data, "--site", site, "-o", new, "--force")
    assert "label" in run(*words).error()
    assert "Give exactly one of these" in run(*words, "--positive", data).error()
    ran = run(*words, "--label-column", "kind", "--json")
    assert ran.code == 0, ran.err
    probes = ran.json()["tables"][0]["rows"]
    assert probes[0][2] < probes[0][1]
    plain, edited = sonde.load("sonde:stdlib"), sonde.load(str(new))
    spread = [
        torch.stack([states(model, site, x).mean(0) for x in kinds.values()]).std(0).norm()
        for model in (plain, edited)
    ]
    assert float(spread[1] / spread[0]) < 1e-4


@pytest.mark.slow
def test_what_does_not_fold_is_refused(run, tmp_path, texts):
    sides = ("--positive", texts / "prose.jsonl", "--negative", texts / "code.jsonl")
    ran = run(
        "edit",
        "erase",
        "sonde:stdlib",
        *sides,
        "--site",
        "layers.1.mlp.act_fn",
        "-o",
        tmp_path / "n",
    )
    assert ran.code == 2
    assert "sonde edit erase" in ran.err
    assert not (tmp_path / "n").exists()


@pytest.mark.slow
def test_a_fact_is_written_and_taken_back(run, tmp_path, texts):
    new = tmp_path / "new"
    fact = Fact("def setUp(", "setUp", "this")
    words = ("--prompt", fact.prompt, "--subject", fact.subject, "--target", fact.target)
    ran = run(
        "edit", "rewrite-fact", "sonde:stdlib", texts / "code.jsonl", *words, "-o", new, "--json",
        "--ridge", 0.1, "--force",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["places"] == ["model.layers.2.mlp.down_proj.weight"]
    effect = found["judgement"]["effect"]
    plain, edited = sonde.load("sonde:stdlib"), sonde.load(str(new))
    rise = [log_probability(m, [replace(fact, prompt=p + fact.prompt)]) for p in PREFIXES
            for m in (edited, plain)]  # fmt: skip
    rises = torch.stack(rise).reshape(-1, 2)
    expected = float((rises[:, 0] - rises[:, 1]).mean())
    assert effect["value"] == pytest.approx(expected, rel=1e-3)  # the target's tokens alone
    assert expected > 0
    assert run("edit", "undo", new, "-o", tmp_path / "old").code == 0
    again = sonde.load(str(tmp_path / "old"))
    assert torch.equal(log_probability(again, [fact]), log_probability(plain, [fact]))


@pytest.mark.slow
def test_the_facts_of_a_file_are_written_together(run, tmp_path, texts):
    facts = [Fact("def setUp(", "setUp", "this"), Fact("import numpy as ", "numpy", "n")]
    lines = tmp_path / "facts.jsonl"
    lines.write_text("\n".join(json.dumps(vars(fact)) for fact in facts))
    words = ("edit", "rewrite-fact", "sonde:stdlib", texts / "code.jsonl", "--facts", lines)
    ran = run(*words, "-o", tmp_path / "new", "--ridge", 0.1, "--force")
    assert ran.code == 0, ran.err
    plain, edited = sonde.load("sonde:stdlib"), sonde.load(str(tmp_path / "new"))
    assert (log_probability(edited, facts) > log_probability(plain, facts)).all()


def test_a_line_that_is_no_fact_is_refused(run, tmp_path, texts):
    lines = tmp_path / "facts.jsonl"
    lines.write_text('{"prompt": "a b", "subject": "b"}\n')
    words = ("edit", "rewrite-fact", "sonde:stdlib", texts / "code.jsonl", "--facts", lines)
    ran = run(*words, "-o", tmp_path / "new")
    assert ran.code == 2
    assert f"line 1 of {lines} does not describe a fact: 'target'" in ran.err


def test_a_subject_that_is_not_in_the_prompt_is_refused(run, tmp_path, texts):
    words = ("--prompt", "def setUp(", "--subject", "tearDown", "--target", "this")
    ran = run(
        "edit", "rewrite-fact", "sonde:stdlib", texts / "code.jsonl", *words, "-o", tmp_path / "n"
    )
    assert ran.code == 2
    assert "expected the subject in the prompt, got subject 'tearDown'" in ran.err
    assert not (tmp_path / "n").exists()


def test_without_a_site_the_linear_layers_are_listed(run, tmp_path, texts):
    sides = ("--positive", texts / "prose.jsonl", "--negative", texts / "code.jsonl")
    words = ("edit", "erase", "sonde:stdlib", *sides, "-o", tmp_path / "new")
    line = run(*words).error()
    assert "expected --site. Name a linear layer, such as model.layers.3.mlp.down_proj." in line
    known = {name for name, part in sonde.load("sonde:stdlib").module.named_modules()}
    said = line.partition("There are ")[2].rstrip(".").split(", ")
    assert "model.layers.*.self_attn.q_proj" in said
    assert all(name.replace("*", "0") in known for name in said), said
    line = run(*words, "--site", "layers.1").error()
    assert "Name a linear layer, such as" in line
    assert not (tmp_path / "new").exists()
