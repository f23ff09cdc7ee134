"""``sonde edit steer`` and ``ablate``: a direction of two data sets, in the weights."""

import json

import pytest
import torch

import sonde
from sonde.edit import SteeringVector
from sonde.run.changing.judge import STRENGTHS

PROSE = [
    f"    The value number {i} is returned to the caller unless it is empty.\n" for i in range(24)
]
CODE = [f"        self._x{i} = y[{i}] or z.call(a={i}, b=[q for q in r])\n" for i in range(24)]


@pytest.fixture
def sides(tmp_path):
    for name, texts in (("prose", PROSE), ("code", CODE)):
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return "--positive", tmp_path / "prose.jsonl", "--negative", tmp_path / "code.jsonl"


def logits(model, text):
    ids = torch.tensor([list(text.encode())])
    with torch.no_grad():
        return model.module(ids).logits


@pytest.mark.slow
def test_a_folded_vector_is_the_hooked_one_and_can_be_taken_back(run, tmp_path, sides):
    new = tmp_path / "new"
    words = ("edit", "steer", "sonde:stdlib", *sides, "-o", new, "--limit", 6, "--strength", 0.5)
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["schema"] == "sonde-edit/1"
    assert found["judgement"]["control"]["n"] == 10
    assert found["judgement"]["size"] == pytest.approx(0.5, rel=0.8)
    assert (tmp_path / "new.html").is_file()
    (site, *tensors) = found["places"]
    plain, edited = sonde.load("sonde:stdlib", device="cpu"), sonde.load(str(new), device="cpu")
    fitted_file = tmp_path / "all.sonde"
    assert run(*words[:7], "-o", fitted_file, "--limit", 6).code == 0
    fitted = sonde.Fitted.load(fitted_file)
    assert len(fitted.names) == 7
    edit = fitted.result(SteeringVector(), site).edit(0.5)
    with sonde.editing(plain, edit, site):
        want = logits(plain, CODE[0])
    got = logits(edited, CODE[0])
    assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())
    assert len(tensors) == 1  # the class adds a bias to each projection of each layer: zeros
    changed = {n for n, x in edited.module.named_parameters() if n.endswith("bias") and x.any()}
    assert changed == {*tensors}
    assert "20 biases of zeros had to be added" in ran.err
    assert run("edit", "undo", new, "-o", tmp_path / "old").code == 0
    again = sonde.load(str(tmp_path / "old"), device="cpu")
    assert torch.equal(logits(again, CODE[0]), logits(plain, CODE[0]))


@pytest.mark.slow
def test_an_ablated_model_lacks_the_direction_everywhere(run, tmp_path):
    new = tmp_path / "new"
    words = ("edit", "ablate", "sonde:stdlib", "--positive", "sonde:upper", "--negative")
    ran = run(*words, "sonde:lower", "-o", new, "--limit", 8, "--json")
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["judgement"]["beyond_control"] > 3
    rows = found["tables"][0]["rows"]
    assert len(rows) == 7
    taken = [row for row in rows if row[4] == "taken"]
    assert len(taken) == 1
    assert taken[0][1] == min(row[1] for row in rows if row[4] in ("", "taken"))
    model = sonde.load(str(new), device="cpu")
    sites = [f"model.layers.{i}" for i in range(7)]
    with sonde.Tap(model, sites) as tap:
        logits(model, PROSE[0])
    rank = torch.linalg.matrix_rank(torch.cat([r.flatten(0, 1) for r in tap.rows.values()]))
    assert int(rank) == 191  # of 192: one direction is gone from every state


@pytest.mark.slow
def test_what_cannot_be_done_writes_nothing(run, tmp_path, sides):
    new = tmp_path / "new"
    start = ("edit", "steer", "sonde:stdlib", *sides, "-o", new, "--limit", 6)
    assert "too large: it moves states by" in run(*start, "--strength", 40).error()
    said = run(*start, "--site", "model.layers.2.input_layernorm").error()
    assert "sonde generate sonde:stdlib PROMPTS --steer FILE.sonde" in said
    assert "--report" in run(*start, "--report", "x.pdf").error()
    assert not new.exists()
    assert not (tmp_path / "new.html").exists()


@pytest.mark.slow
def test_one_vector_for_each_block_as_gguf(run, tmp_path, sides):
    out = tmp_path / "v.gguf"
    ran = run("edit", "steer", "sonde:stdlib", *sides, "-o", out, "--limit", 6)
    assert ran.code == 0, ran.err
    raw = out.read_bytes()
    assert raw[:4] == b"GGUF"
    assert [f"direction.{i}".encode() in raw for i in range(8)] == [False, *[True] * 6, False]


@pytest.mark.slow
def test_the_default_strength_is_the_largest_within_the_limits(run, tmp_path, sides):
    new = tmp_path / "new"
    ran = run("edit", "steer", "sonde:stdlib", *sides, "-o", new, "--limit", 8, "--json")
    assert ran.code == 0, ran.err
    found = ran.json()["judgement"]
    assert not found["too_large"]
    assert found["beyond_control"] > 3
    said = float(ran.json()["notes"][0].split()[0])
    larger = STRENGTHS[STRENGTHS.index(said) - 1]
    words = ("edit", "steer", "sonde:stdlib", *sides, "-o", tmp_path / "more", "--limit", 8)
    assert "too large" in run(*words, "--strength", larger).error()


@pytest.mark.slow
def test_what_does_no_more_than_chance_says_so_and_is_not_written(run, tmp_path, sides):
    new, (_, _, _, same) = tmp_path / "new", sides
    lines = same.read_text().splitlines()
    (tmp_path / "even.jsonl").write_text("\n".join(lines[::2]))
    (tmp_path / "odd.jsonl").write_text("\n".join(lines[1::2]))
    words = ("edit", "steer", "sonde:stdlib", "--positive", tmp_path / "even.jsonl")
    words += ("--negative", tmp_path / "odd.jsonl", "-o", new, "--limit", 8, "--strength", 0.01)
    ran = run(*words)
    assert ran.code == 1
    assert "does not have the requested effect: its effect of" in ran.err
    assert not new.exists()
    assert run(*words, "--force").code == 0
    assert new.exists()


@pytest.mark.slow
def test_less_of_it_is_judged_the_other_way_round(run, tmp_path, sides):
    words = ("edit", "steer", "sonde:stdlib", *sides, "--limit", 8, "--strength", -1, "--json")
    ran = run(*words, "-o", tmp_path / "new", "--force")
    assert ran.code == 0, ran.err
    assert ran.json()["judgement"]["effect"]["value"] > 0
    assert ran.json()["target"].startswith(str(sides[3]))
