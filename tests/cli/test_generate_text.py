"""``sonde generate``: what is printed is what the model writes, plain, steered or by a rule."""

import json

import pytest
import torch

import sonde
from cli_case import run_words
from sonde.edit import ContrastiveDecode, SteeringVector
from sonde.tap import OtherLogits

PROMPTS = ["def read(path):\n", "import "]
SITE = "model.layers.3"


@pytest.fixture(scope="module")
def model():
    return sonde.load("sonde:stdlib")


@pytest.fixture(scope="module")
def steering(model, tmp_path_factory):
    label = torch.arange(64) % 2
    items = [{"text": "class A" if y else "import b"} | {"label": y} for y in label.tolist()]
    stream = sonde.read(model, items, sites=[SITE], reducer="last")
    fitted = sonde.fit(SteeringVector(positive=1), stream, progress=False)
    path = tmp_path_factory.mktemp("steering") / "direction.sonde"
    fitted.save(path)
    return path, fitted.result("steering_vector")


def written(model, text: str, processors=(), n: int = 12) -> str:
    ids = model.processor(text, return_tensors="pt")["input_ids"]
    out = model.module.generate(
        ids, max_new_tokens=n, do_sample=False, logits_processor=list(processors)
    )
    return model.processor.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.truth("the model's own generate")
def test_a_file_of_prompts_plain_and_contrasted(tmp_path, model):
    table, lines = tmp_path / "prompts.jsonl", tmp_path / "prompts.txt"
    table.write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    lines.write_text("import \n\n")
    plain = run_words("generate", "sonde:stdlib", table, "--max-new-tokens", 12, "--json").json()
    assert [a["prompt"] for a in plain] == PROMPTS
    assert [a["text"] for a in plain] == [written(model, text) for text in PROMPTS]
    said = run_words("generate", "sonde:stdlib", lines, "--max-new-tokens", 12, "--decode",
                     "contrastive", "--amateur", 2, "--decode-strength", 2)  # fmt: skip
    rule = ContrastiveDecode(2, strength=2.0)
    assert said.out == "import " + written(model, "import ", [rule.bind(model)]) + "\n"
    assert said.out != "import " + plain[1]["text"] + "\n"
    assert rule.reads().keys() == {"amateur"}
    assert isinstance(rule.reads()["amateur"], OtherLogits)


@pytest.mark.truth("the model's own generate inside sonde.editing")
def test_steered_by_a_fitted_file(model, steering):
    path, result = steering
    words = ("generate", "sonde:stdlib", PROMPTS[0], "--max-new-tokens", 12, "--json")
    steered = run_words(*words, "--steer", path, "--strength", 6, "--where", "generated")
    with sonde.editing(model, result.edit(6.0), f"{SITE}:out", "generated"):
        expected = written(model, PROMPTS[0])
    assert steered.json()[0]["text"] == expected
    assert "steering_vector of model.layers.3:out, strength 6" in steered.err
    nothing = run_words(*words, "--steer", path, "--strength", 0).json()[0]["text"]
    assert nothing == written(model, PROMPTS[0]) != expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--decode", "contrastive"), "--amateur: missing with --decode contrastive"),
        (("--amateur", "3"), "--amateur: needs --decode contrastive"),
        (("--site", "blocks"), "--site: needs --steer or --dictionary"),
        (("--act-at", "blocks"), "--act-at: needs --steer or --dictionary"),
        (("--where", "some"), "--where: expected all, prompt, generated or last, got 'some'"),
        (("--max-new-tokens", "0"), "--max-new-tokens: expected at least 1, got 0"),
        (("--decode", "contrastive", "--amateur", "9"), "expected a layer in -7..6, got 9"),
    ],
)
def test_what_is_refused(words, said):
    assert said in run_words("generate", "sonde:stdlib", "import ", *words).error()


def test_files_that_do_not_serve(tmp_path, steering):
    path, _ = steering
    missing = run_words("generate", "sonde:stdlib", tmp_path / "none.txt").error()
    assert "no such file" in missing
    table = tmp_path / "other.jsonl"
    table.write_text(json.dumps({"story": "a"}) + "\n")
    assert "--text-column" in run_words("generate", "sonde:stdlib", table).error()
    wrong = run_words("generate", "sonde:stdlib", "a", "--steer", path, "--site", "head").error()
    assert "expected one result that can change states, got none in" in wrong
    assert "steering_vector at model.layers.3:out" in wrong
    images = run_words("generate", "sonde:digits", "a").error()
    assert "expected a model of texts that has generate(), got ViTForImageClass" in images


@pytest.mark.slow
@pytest.mark.truth("the length of a table of positions")
def test_it_stops_at_the_last_position_of_a_model(tmp_path, model):
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = model.processor("import os", return_tensors="pt")["input_ids"]
    n = ids.shape[1]
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": len(model.processor)}
    torch.manual_seed(0)
    net = GPT2LMHeadModel(GPT2Config(n_positions=n + 5, bos_token_id=0, eos_token_id=None, **sizes))
    net.save_pretrained(tmp_path / "tiny")
    model.processor.save_pretrained(tmp_path / "tiny")
    said = run_words("generate", tmp_path / "tiny", "import os", "--json")
    assert said.code == 0
    assert "at most 5" in said.err
    refused = run_words("generate", tmp_path / "tiny", "import os, sys, re, abc", "--json")
    assert refused.code == 2
    assert f"fewer than {n + 5} tokens" in refused.err
