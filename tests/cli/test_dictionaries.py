"""A dictionary on the command line: fitted, set while a model writes, and explained."""

import ast
import csv
import glob
import inspect
import io
import json
import os
import re
import shlex
from typing import Any

import pytest
import torch

import sonde
from cli_case import run_words

PROMPT, SITE = "def read(path):\n", "model.layers.3"
METHOD = "sparse_autoencoder(features=48,k=4,batch=64,mixed=1,rate=0.01,passes=2)"


def texts_of(folder, n_letters):
    """Write eight short texts: the shipped ones are so long that reading them takes a minute."""
    path = folder / "texts.jsonl"
    texts = [inspect.getsource(m)[:n_letters] for m in (ast, csv, glob, io, json, os, re, shlex)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts for commands that run the model hundreds of times on each."""
    return texts_of(tmp_path_factory.mktemp("texts"), 60)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    path = tmp_path_factory.mktemp("dictionary") / "d.sonde"
    data = texts_of(path.parent, 400)
    ran = run_words("fit", METHOD, "sonde:stdlib", data, "--sites",
                    SITE, "--reducer", "tokens", "-o", path, "--quiet")  # fmt: skip
    assert ran.code == 0, ran.err
    return path, sonde.Fitted.load(path).result("sparse_autoencoder")


@pytest.mark.slow
@pytest.mark.truth("the model's own generate inside sonde.editing")
def test_a_feature_is_set_while_a_model_writes(tmp_path, fitted):
    path, found = fitted
    model = sonde.load("sonde:stdlib")
    feature = int(found.density.argmax())
    ids = model.processor(PROMPT, return_tensors="pt")["input_ids"]
    with sonde.editing(model, found.edit(features={feature: 400.0}), f"{SITE}:out"):
        network: Any = model.module
        out = network.generate(ids, max_new_tokens=8, do_sample=False)
    want = model.processor.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    words = ("generate", "sonde:stdlib", PROMPT, "--max-new-tokens", 8, "--json")
    setting = ("--feature", f"{feature}=400")
    ran = run_words(*words, "--dictionary", path, *setting)
    assert ran.json()[0]["text"] == want
    assert f"{feature}=400 of d.sonde at {SITE}:out" in ran.err
    assert run_words(*words).json()[0]["text"] != want
    found.save(tmp_path / "d.safetensors")
    plain = ("--dictionary", tmp_path / "d.safetensors", *setting)
    assert run_words(*words, *plain, "--act-at", SITE).json()[0]["text"] == want
    assert (
        "that this model does not have. Name a site with --act-at"
        in run_words(*words, *plain).error()
    )
    assert (
        "expected NUMBER=VALUE" in run_words(*words, "--dictionary", path, "--feature", "x").error()
    )
    assert "expected --feature N=VALUE" in run_words(*words, "--dictionary", path).error()
    assert (
        "features from 0 to 47"
        in run_words(*words, "--dictionary", path, "--feature", "48=1").error()
    )


@pytest.mark.slow
def test_the_features_that_answers_hang_on_are_named(data, fitted):
    path, _ = fitted
    words = ("explain", "sonde:stdlib", data, "--limit", 2, "--methods", "saliency")
    ran = run_words(*words, "--dictionary", path, "--json")
    assert ran.code == 0, ran.err
    assert all(0 <= one["feature"] < 48 for one in ran.json()["features"])


@pytest.mark.slow
@pytest.mark.truth("the model run with a hook that adds the feature's direction")
def test_an_atlas_of_features_says_what_setting_them_changes(data, fitted):
    path, found = fitted
    words = ("units", "sonde:stdlib", data, "--sites", SITE, "--limit", 2)
    ran = run_words(*words, "--dictionary", path, "--clamp", 48, "--json", "--quiet")
    assert ran.code == 0, ran.err
    document = ran.json()
    units = document["units"]
    assert len(units) == 48
    assert document["dictionary"] == str(path)
    assert document["loss"]["clean"] < document["loss"]["rebuilt"] < document["loss"]["mean"]
    model = sonde.load("sonde:stdlib")
    stream = sonde.read(model, str(data), sites=SITE, reducer="tokens", limit=2)
    rows = torch.cat([batch.rows[f"{SITE}:out"] for batch in stream])
    z = found.encode(rows.float())
    feature = int(z.max(0).values.argmax())
    top = max(row["v"] for row in units[feature]["rows"] if row["r"] == "top")
    assert top == pytest.approx(float(z[:, feature].max()), rel=5e-4)  # four digits
    assert units[feature]["clamped"]["up"]


@pytest.mark.slow
def test_a_fit_says_how_sparse_and_how_faithful_a_dictionary_is(tmp_path):
    ran = run_words("fit", METHOD, "sonde:digits", "sonde:digits/train", "--sites", "vit.layers.1",
                    "--reducer", "patches", "--limit", 60, "-o", tmp_path / "d.sonde")  # fmt: skip
    assert ran.code == 0, ran.err
    said = " ".join(ran.err.split())
    assert re.search(
        r"4 features are active in a row, \S+% in none; \S+% of the variance of held", said
    )
    assert re.search(r"\(by as many principal components: \S+%\); rebuilt states recover", said)
    assert "on 32 examples held out" in said
