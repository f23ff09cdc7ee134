"""States of what a model generates, on the command line."""

import json
from typing import Any

import pytest
import torch

import sonde
from cli_case import run_words
from sonde.store import Store

pytestmark = pytest.mark.slow
NEW = 6


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["def f(x):", "import os\n", "class A:\n    pass\n\ndef"]
    path.write_text("\n".join(json.dumps({"id": str(i), "text": t}) for i, t in enumerate(texts)))
    return path, texts


@pytest.mark.truth("the model's own generate, then one forward over what it gave")
def test_states_of_prompts_and_of_what_follows(tmp_path, prompts):
    path, texts = prompts
    words = ["--sites", "model.layers.2", "--reducer", "tokens"]
    settings = f"max_new_tokens={NEW},do_sample=False"
    ran = run_words("read", "sonde:stdlib", path, *words, "--generate", settings,
                    "-o", tmp_path / "acts", "--quiet")  # fmt: skip
    assert ran.code == 0, ran.err
    store = Store(tmp_path / "acts")
    rows, example = {}, {}
    for batch in store:
        (key,) = batch.rows
        for i, name in enumerate(batch.ids):
            mine = batch.example[key] == i
            rows[name], example[name] = batch.rows[key][mine], batch.position[key][mine]
    model = sonde.load("sonde:stdlib")
    network: Any = model.module
    for i, text in enumerate(texts):
        ids = model.processor(text, return_tensors="pt")["input_ids"]
        out = network.generate(ids, max_new_tokens=NEW, do_sample=False)
        with sonde.Tap(model, ["model.layers.2"]) as tap:
            tap.run(out)
            whole = tap.rows["model.layers.2:out"][0]
        n = len(example[str(i)])
        assert n >= ids.shape[1]
        torch.testing.assert_close(rows[str(i)], whole[:n], rtol=1e-4, atol=1e-4)
    said = run_words("info", tmp_path / "acts")
    assert said.code == 0
    assert "model.layers.2:out" in said.out
    facts = run_words("info", tmp_path / "acts", "--json").json()
    assert facts["model"]["dtype"] == "float32"
    assert len(facts["model"]["model"]) == 64


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("sonde:stdlib", "max_new_tokens=0", "at least 1"),
        ("sonde:stdlib", "max_new_tokens", "expected settings such as"),
        ("sonde:stdlib", "max_new_tokens=2,banana=3", "banana"),
        ("sonde:digits", "max_new_tokens=2", "expected a model that generates"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_folder(tmp_path, prompts, model, settings, said):
    data = prompts[0] if model == "sonde:stdlib" else "sonde:digits/test"
    ran = run_words("read", model, data, "--generate", settings, "-o", tmp_path / "acts")
    assert said in ran.error()
    assert not (tmp_path / "acts").exists()
