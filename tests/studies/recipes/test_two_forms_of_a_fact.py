"""Two forms of a fact that are one state turned, forms of other facts, and a file of texts."""

import json

import pytest
import torch
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde_studies.recipes.two_forms_of_a_fact import two_forms_of_a_fact

IDENTITY = Model(nn.Sequential(nn.Identity()).eval())


def facts(n=90):
    draw = torch.Generator().manual_seed(2)
    x, noise = torch.randn(n, 6, generator=draw), torch.randn(n, 6, generator=draw)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q
    return x, noise, turn


def asked(x, y, **options):
    label = (x[:, 0] > 0).long()
    rows = [{"first": a, "second": b, "kind": int(c)} for a, b, c in zip(x, y, label, strict=True)]
    return two_forms_of_a_fact(IDENTITY, rows, sites="0", progress=False, **options)


@pytest.mark.truth("a shifted copy, a turned copy, and other facts")
def test_a_copy_is_found_a_turned_copy_is_alike_and_other_facts_are_neither():
    x, noise, turn = facts()
    same = asked(x, 2 * x + 7, label_column="kind")
    assert same.rows[0]["found"] == 1.0
    assert same.verdict == "one fact"
    turned = asked(x, x @ turn).rows[0]
    assert turned["CKA"] == pytest.approx(1.0, abs=1e-6)
    assert turned["found"] < 0.3
    other = asked(x, noise, label_column="kind")
    assert other.verdict == "two facts"
    assert other.rows[0]["other form"] < 0.7 < other.rows[0]["same form"]


@pytest.mark.truth("nearest by cosine, counted in a loop")
def test_what_is_found_is_the_nearest_by_cosine():
    x, noise, _ = facts(50)
    y = x + 0.8 * noise
    a, b = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    hits = 0
    for one, other in ((a, b), (b, a)):
        for i in range(50):
            cosine = [float(torch.cosine_similarity(one[i], v, dim=0)) for v in other]
            hits += cosine.index(max(cosine)) == i
    assert asked(x, y).rows[0]["found"] == pytest.approx(hits / 100)
    assert 20 < hits < 95


def test_a_third_form_is_refused():
    x, noise, _ = facts()
    with pytest.raises(InputError, match="expected two forms, got 3"):
        asked(x, noise, forms=("first", "second", "kind"))


@pytest.mark.slow
def test_the_command_reads_two_columns_of_texts(tmp_path):
    rows = [{"code": f"x{i} = {i * i}", "words": f"x{i} is {i * i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ran = run_words("recipe", "two-forms-of-a-fact", "sonde:stdlib", tmp_path / "rows.jsonl",
                    "--forms", "code", "words", "--sites", "layers.1,layers.3",
                    "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(ran.json()["rows"]) == 2
    assert max(row["found"] for row in ran.json()["rows"]) > 0.1
