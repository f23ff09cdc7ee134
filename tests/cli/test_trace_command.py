"""``sonde trace``: one pair, many pairs, answers of several tokens, and what is refused."""

import json

import pytest
import torch

import sonde
from sonde.report.documents import document_of

PAIR = ("--clean", "a = [1, 2", "--corrupt", "a = (1, 2")
WORDS = ("trace", "sonde:stdlib", *PAIR, "--answer", "]", "--instead", ")")


@pytest.mark.slow
@pytest.mark.truth("the model called by hand")
def test_a_pair_is_traced_and_drawn(run, tmp_path):
    path = tmp_path / "trace.html"
    ran = run(*WORDS, "--json", "-o", path)
    assert ran.code == 0, ran.err
    found = ran.json()
    model = sonde.load("sonde:stdlib", device="cpu")
    read = [model.processor(t, return_tensors="pt")["input_ids"] for t in (PAIR[1], PAIR[3])]
    with torch.no_grad():
        clean, corrupt = (model.module(ids).logits[0, -1] for ids in read)
    one = found["pairs"][0]
    assert one["clean"] == pytest.approx(float(clean[ord("]")] - clean[ord(")")]), abs=1e-3)
    assert one["corrupt"] == pytest.approx(float(corrupt[ord("]")] - corrupt[ord(")")]), abs=1e-3)
    assert one["patched"][-1][-1] == pytest.approx(1.0, abs=1e-4)  # the last state decides
    assert one["tokens"][4] == "["
    assert one["corrupt_tokens"][4] == "("
    assert one["circuit"]["faithfulness"] > 0.9
    assert "trace of pairs of texts" in run("info", path).out
    page = path.read_text("utf-8")
    assert "Layers and positions" in page
    assert "The circuit" in page


@pytest.mark.slow
def test_many_pairs_and_answers_of_several_tokens(run, tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [
        {"clean": "x = [1", "corrupt": "x = (1", "answer": "]\n", "instead": ")"},
        {"clean": "x = {1", "corrupt": "x = (1", "answer": "}"},
    ]
    path.write_text("\n".join(map(json.dumps, pairs)))
    found = run("trace", "sonde:stdlib", "--pairs", path, "--json", "--sites", "layers.2").json()
    assert [one["objective"] for one in found["pairs"]] == [
        "log-probability of the 2 tokens of the answer minus that of the 1 token of the other "
        "answer",
        f"log_prob[{ord('}')}]",
    ]
    assert found["pairs"][0]["tokens"] is None
    assert document_of(found).verdict.startswith("2 pairs traced; circuits keep")


@pytest.mark.slow
def test_what_does_not_fit_is_said_in_one_line(run, tmp_path):
    base = ("trace", "sonde:stdlib")
    longer = (*base, "--clean", "abc", "--corrupt", "abcd", "--answer", "x")
    assert "the same number of tokens, got 3 and 4" in run(*longer).error()
    same = (*base, "--clean", "abc", "--corrupt", "abc", "--answer", "x")
    assert "the same tokens" in run(*same).error()
    assert "all three" in run(*base, "--clean", "abc").error()
    assert "or --pairs FILE" in run(*base).error()
    assert "two answers" in run(*base, *PAIR, "--answer", "x", "--instead", "x").error()
    assert "has no token" in run(*base, *PAIR, "--answer", "").error()
    (tmp_path / "bad.jsonl").write_text('{"clean": "a"}')
    assert "bad.jsonl:1" in run(*base, "--pairs", tmp_path / "bad.jsonl").error()
    assert "a language model" in run("trace", "sonde:digits", *PAIR, "--answer", "x").error()
    assert "ends in .html" in run(*WORDS, "-o", tmp_path / "page.txt").error()
