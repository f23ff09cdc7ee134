"""``sonde compress --bias-fix``: means kept, budgets kept with new biases, undone to the byte."""

import filecmp
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sonde.data.shipped import model_directory
from sonde.weights.folder import weight_bytes

DIGITS = ("compress", "sonde:digits", "sonde:digits/train", "--limit", 64, "--held", 64, "--json")
ROUNDED = (*DIGITS, "--to", "2bit", "--method", "rtn", "--no-timing")


@pytest.mark.slow
def test_answers_change_less_and_undo_gives_every_byte(run, tmp_path):
    plain = run(*ROUNDED, "-o", tmp_path / "A").json()
    fixed = run(*ROUNDED, "--bias-fix", "-o", tmp_path / "B").json()
    assert "biases" not in plain["figures"]
    assert fixed["figures"]["biases"] == fixed["layers"] > 10
    assert (plain["calibrated_on"], fixed["calibrated_on"]) == (64, 64)  # grids of 2 bits take some
    assert fixed["fidelity"]["kl"] != plain["fidelity"]["kl"]
    assert "biases corrected" in fixed["method"]
    assert run("compress", "undo", tmp_path / "B", "-o", tmp_path / "OLD").code == 0
    for file in Path(model_directory("sonde:digits")).iterdir():
        if file.is_file():
            assert filecmp.cmp(file, tmp_path / "OLD" / file.name, shallow=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_biases_count_in_a_budget(run, tmp_path, dtype):
    config = LlamaConfig(vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                         num_attention_heads=2, max_position_embeddings=32)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(dtype).save_pretrained(tmp_path / "OLD")
    ids = torch.randint(0, 40, (60, 9), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "ids.npz", x=ids)
    words = (
        "compress",
        tmp_path / "OLD",
        tmp_path / "ids.npz",
        "--no-timing",
        "--json",
        "--held",
        8,
    )
    budget = int(0.55 * weight_bytes(tmp_path / "OLD"))
    told = run(*words, "--method", "rtn", "--budget", budget, "--bias-fix", "-o", tmp_path / "A")
    told = told.json()
    assert told["figures"] == {"biases": 28, "without_bias": 1}
    kl = told["fidelity"]["kl"]
    expected = next(one["bytes"] for one in told["tried"] if one["kl"] == kl)
    n_headers = 320 * told["layers"]
    assert expected - n_headers < told["bytes"][1] <= expected <= budget


@pytest.mark.slow
def test_trials_with_corrected_biases_are_trials_of_their_own(run, tmp_path):
    words = (*DIGITS, "--method", "prune_weights", "--max-kl", 3, "--no-timing", "-o")
    plain = run(*words, tmp_path / "A").json()
    fixed = run(*words, tmp_path / "B", "--bias-fix").json()
    assert fixed["figures"]["biases"] > 10
    by_size = [{one["size"]: one["kl"] for one in told["tried"]} for told in (plain, fixed)]
    assert by_size[0].keys() == by_size[1].keys()
    assert all(by_size[0][size] != by_size[1][size] for size in by_size[0])
    lines = (tmp_path / "B.trials.jsonl").read_text()
    (tmp_path / "A.trials.jsonl").write_text(lines)
    again = run(*words[:-1], "-o", tmp_path / "A2").json()
    assert again["tried"] == plain["tried"]


@pytest.mark.slow
def test_methods_that_scale_inputs_are_refused(run, tmp_path):
    said = run(*DIGITS[:-1], "--method", "awq", "--bias-fix", "-o", tmp_path / "A")
    assert said.code == 2
    assert "correct_biases: expected a plan that leaves the inputs of layers" in said.err
    assert not (tmp_path / "A").exists()
