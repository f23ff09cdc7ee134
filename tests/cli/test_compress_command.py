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
from sonde.report.compress_terminal import compress_verdict
from sonde.weights import QuantLinear
from sonde.weights.folder import weight_bytes

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
    assert told["memory_packed"] < told["memory"][0] / 3
    assert told["memory_packed"] < told["memory"][1]
    assert 0 < told["fidelity"]["kl"] < told["fidelity"]["kl_99"] < 0.2
    assert told["figures"]["loss"] < told["figures"]["loss_rtn"]
    assert run("compress", "undo", folder, "-o", tmp_path / "OLD").code == 0
    for file in Path(model_directory("sonde:stdlib")).iterdir():
        if file.is_file():
            assert filecmp.cmp(file, tmp_path / "OLD" / file.name, shallow=False)


def test_its_page_says_what_was_gained_inside_in_answers_bytes_and_time(small):
    folder, told = small
    page = folder.with_name("SMALL.html").read_text()
    for part in ("answers", "inside", "bytes", "time", "undo"):
        assert f'<section id="{part}"' in page
    assert compress_verdict(told) in page
    assert [one["what"] for one in told["times"]] == ["one token", "256 tokens"]
    assert len(told["sites"]) == 7
    assert all(0 < site["error"] < 0.1 for site in told["sites"])
    assert {one["kind"] for one in told["kept"]} == {"Embedding", "LlamaRMSNorm"}
    assert (told["calibrated_on"], told["compared_on"]) == (4, 2)


def test_a_budget_is_kept_and_an_unreachable_one_names_the_nearest(run, tmp_path):
    words = ("compress", "sonde:digits", "sonde:digits/train", "--limit", 8, "--held", 40)
    words += ("--method", "rtn", "--json")
    budget = int(0.3 * weight_bytes(Path(model_directory("sonde:digits"))))
    told = run(*words, "--budget", budget, "-o", tmp_path / "A").json()
    assert told["bytes"][1] <= budget
    assert told["fidelity"]["kl"] == min(one["kl"] for one in told["tried"])
    kinds = {one["kind"] for one in told["kept"]}
    assert "Conv2d" in kinds
    assert "Linear" not in kinds
    near = run(*words, "--budget", "1KiB", "-o", tmp_path / "B")
    assert "--budget: no setting needs at most 1,024 bytes; the nearest is 2 bits" in near.err
    near = run(*words, "--max-kl", "1e-12", "-o", tmp_path / "B")
    assert "the nearest is 8 bits in groups of 32" in near.err
    wrong = run(*words, "--max-kl", 1, "--to", "4bit", "-o", tmp_path / "B")
    assert "leave out --to and --group" in wrong.err
    assert not (tmp_path / "B").exists()


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
