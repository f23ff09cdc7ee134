"""``sonde compress``: what it writes, prints and refuses; opened by sonde and by transformers."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sonde
from cli_case import run_words
from sonde.data.shipped import model_directory
from sonde.weights import QuantLinear

WORDS = ("compress", "sonde:stdlib", "sonde:stdlib/train", "--limit", 4, "--held", 2)
OPENED = """
import sys
import {first}
import {second}
from transformers import AutoModelForCausalLM
import torch
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype)
    layer = model.model.layers[0].mlp.up_proj
    print(type(layer).__name__, layer.scale.dtype, model.dtype)
    print(model.generate(torch.tensor([[100, 101, 102]]), max_new_tokens=4).shape[1])
"""


def in_a_new_process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(str(sonde.__file__)).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "SMALL"
    return folder, run_words(*WORDS, "-o", folder, "--json").json()


def test_files_are_smaller_answers_are_near_and_undo_gives_every_byte(run, small, tmp_path):
    folder, told = small
    before, after = told["bytes"]
    assert after == (folder / "model.safetensors").stat().st_size < before / 2.8
    assert told["memory"][1] < told["memory"][0]
    assert 0 < told["fidelity"]["kl"] < told["fidelity"]["kl_99"] < 0.2
    assert told["figures"]["loss"] < told["figures"]["loss_rtn"]
    assert run("compress", "undo", folder, "-o", tmp_path / "OLD").code == 0
    for file in Path(model_directory("sonde:stdlib")).iterdir():
        if file.is_file():
            assert filecmp.cmp(file, tmp_path / "OLD" / file.name, shallow=False)


def test_sonde_opens_it_with_the_weights_that_were_planned(small):
    folder, _ = small
    model = sonde.load(str(folder))
    layers = [m for m in model.module.modules() if isinstance(m, QuantLinear)]
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert len(layers) == len(config["layers"]) == 50
    assert {(m.grid.bits, m.grid.group) for m in layers} == {(4, 32)}
    ids = torch.tensor([[100, 101, 102]])
    plain = sonde.load("sonde:stdlib").module
    plain.load_state_dict(
        {
            f"{name}.weight": m.values()
            for name, m in model.module.named_modules()
            if isinstance(m, QuantLinear)
        },
        strict=False,
    )
    with torch.no_grad():
        gap = (model.module(ids).logits - plain(ids).logits).abs().max()
    assert gap < 0.3  # the kernel multiplies in bfloat16


@pytest.mark.parametrize("names", [("sonde", "transformers"), ("transformers", "sonde")])
def test_transformers_opens_it_whatever_is_imported_first(small, names):
    code = OPENED.format(first=names[0], second=names[1])
    ran = in_a_new_process(code, str(small[0]))
    assert ran.stdout.split("\n")[:4] == [
        "QuantLinear torch.int16 torch.float32",
        "7",
        "QuantLinear torch.int16 torch.bfloat16",
        "7",
    ]


def test_import_of_sonde_stays_light():
    code = "import sys, sonde; assert not {'torch', 'transformers'} & sys.modules.keys()"
    in_a_new_process(code)


def test_what_cannot_be_done_is_refused_and_nothing_is_left(run, small, tmp_path):
    new = tmp_path / "NEW"
    for words, message in (
        ((*WORDS, "--to", "1bit", "-o", new), "--to: expected 2bit to 8bit, got '1bit'"),
        ((*WORDS, "--limit", 10**6, "-o", new), "expected more than 1000000 examples"),
        (("compress", small[0], *WORDS[2:], "-o", new), "packed already"),
    ):
        ran = run(*words)
        assert ran.code == 2
        assert message in ran.err
        assert not new.exists()
