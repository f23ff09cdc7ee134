"""``sonde compress``: what it writes, prints and refuses; opened by sonde and by transformers."""

import filecmp
import json
from pathlib import Path
from shutil import copy2, copytree
from typing import Any

import pytest
import torch

import sonde
from cli_case import in_a_new_process, run_words
from sonde.core.errors import StateError
from sonde.data.shipped import model_directory
from sonde.report._format import share
from sonde.report.documents import document_of
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


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "SMALL"
    return folder, run_words(*WORDS, "-o", folder, "--json").json()


def test_files_are_smaller_answers_are_near_and_undo_gives_every_byte(run, small, tmp_path):
    folder, told = small
    before, after = told["bytes"]
    assert after == (folder / "model.safetensors").stat().st_size < before / 2.8
    assert told["memory"][1] < 0.3 * told["memory"][0]
    assert 0 < told["fidelity"]["kl"] < told["fidelity"]["kl_99"] < 0.2
    assert told["figures"]["loss"] < told["figures"]["loss_rtn"]
    assert run("compress", "undo", folder, "-o", tmp_path / "OLD").code == 0
    for file in Path(model_directory("sonde:stdlib")).iterdir():
        if file.is_file():
            assert filecmp.cmp(file, tmp_path / "OLD" / file.name, shallow=False)


def test_its_card_says_what_was_measured(small):
    folder, told = small
    card = (folder / "README.md").read_text()
    before, after = told["numbers"]
    changed = share(told["fidelity"]["changed"])
    for line in (
        f"Parameters | {after:,} (original: {before:,})",
        f"Method | `{told['method']}`",
        "Compared on | 2 examples of sonde:stdlib/train",
        f"Other most likely answer | {changed}",
    ):
        assert f"| {line}" in card
    assert "bits per byte" not in card  # of the original


def test_its_page_says_what_was_gained_inside_in_answers_bytes_and_time(small):
    folder, told = small
    page = folder.with_name("SMALL.html").read_text()
    for part in ("answers", "inside", "bytes", "time", "undo"):
        assert f'<section id="{part}"' in page
    assert document_of(told).verdict in page
    assert [one["what"] for one in told["times"]] == ["one token", "256 tokens"]
    assert len(told["sites"]) == 7
    assert all(0 < site["error"] < 0.1 for site in told["sites"])
    assert {one["kind"] for one in told["kept"]} == {"Embedding", "LlamaRMSNorm"}
    assert (told["calibrated_on"], told["compared_on"]) == (4, 2)


def test_a_model_that_became_slower_is_told_how_to_run_unpacked(small):
    for ratio, is_told in ((0.5, True), (1.4, False)):
        around = [0.9 * ratio, 1.05 * ratio]
        times = [{**one, "ratio": ratio, "ratio_range": around} for one in small[1]["times"]]
        sections = document_of({**small[1], "times": times}).sections
        text = next(one.lead for one in sections if one is not None and one.key == "time")
        assert ("slower than the original on one token" in text) == is_told
        assert ("one token no difference detected" in document_of({**small[1], "times": [
            {**one, "ratio": ratio, "ratio_range": [0.9 * ratio, 3]} for one in small[1]["times"]
        ]}).verdict) == is_told  # fmt: skip
        assert ("sonde.weights.unpacked(model)" in text) == is_told


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_budget_is_sought_among_the_sizes_of_a_method_without_bits(run, tmp_path):
    words = ("compress", "sonde:digits", "sonde:digits/train", "--limit", 8, "--held", 8)
    words += ("--method", "prune_weights", "--json")
    whole = weight_bytes(Path(model_directory("sonde:digits")))
    told = run(*words, "--budget", int(0.6 * whole), "-o", tmp_path / "A").json()
    assert abs(told["bytes"][1] - min(one["bytes"] for one in told["tried"]
               if one["kl"] == told["fidelity"]["kl"])) < 0.03 * whole  # fmt: skip
    fit = [one for one in told["tried"] if one["bytes"] <= 0.6 * whole]
    assert 0 < len(fit) < len(told["tried"]) == 9
    assert told["fidelity"]["kl"] == min(one["kl"] for one in fit)
    near = run(*words, "--budget", "1KiB", "-o", tmp_path / "C")
    assert "the nearest is 80% by prune_weights" in near.err
    wrong = run(*words[:-3], "--method", "any", "-o", tmp_path / "C")
    assert "--method any: expected a limit" in wrong.err


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_file_is_left_when_kernels_hold_the_codes(small):
    code = """
import sys, pathlib, torch, sonde
from sonde.weights import QuantLinear
model = sonde.load(sys.argv[1], device="cpu").module
with torch.no_grad():
    model(torch.tensor([[100, 101, 102]]))
if all(m.kernel_bytes for m in model.modules() if isinstance(m, QuantLinear)):
    print(sys.argv[1] in pathlib.Path("/proc/self/maps").read_text())
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    assert "True" not in in_a_new_process(code, str(small[0])).stdout


def test_import_of_sonde_stays_light():
    code = "import sys, sonde; assert not {'torch', 'transformers'} & sys.modules.keys()"
    in_a_new_process(code)


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_and_nothing_is_left(run, small, tmp_path):
    new = tmp_path / "NEW"
    for words, message in (
        ((*WORDS, "--to", "9bit", "-o", new), "--to: expected 4bit (2bit to 8bit), 1bit, 50%"),
        ((*WORDS, "--method", "gtpq", "-o", new), "no method is called 'gtpq'. Did you mean gptq?"),
        (
            (*WORDS, "--to", "2:4", "--method", "rtn", "-o", new),
            "rtn has no parameter pattern, so it cannot",
        ),
        (
            (*WORDS, "--to", "50%", "--group", 8, "-o", new),
            "--group: sparse_gpt has no parameter group",
        ),
        ((*WORDS, "--limit", 10**6, "-o", new), "expected more than 1000000 examples"),
        (("compress", small[0], *WORDS[2:], "-o", new), "quantised or packed"),
    ):
        ran = run(*words)
        assert ran.code == 2
        assert message in ran.err
        assert not new.exists()


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """Return the digits model in eight bits."""
    folder = tmp_path_factory.mktemp("rounded") / "SMALL"
    words = ("--to", "8bit", "--method", "rtn", "--limit", 8, "--held", 8)
    assert (
        run_words("compress", "sonde:digits", "sonde:digits/train", *words, "-o", folder).code == 0
    )
    return folder


@pytest.mark.parametrize("is_cut", [False, True])
def test_damaged_files_of_packed_weights_are_refused(rounded, tmp_path, is_cut):
    folder = copytree(rounded, tmp_path / "SMALL")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 8
    weights.write_bytes(content[:-9] if is_cut else content)
    with pytest.raises(
        StateError, match=r"model\.safetensors differs from the file that was written"
    ):
        sonde.load(str(folder), device="cpu")


def test_what_transformers_saves_of_it_opens_again(rounded, tmp_path):
    module: Any = sonde.load(str(rounded), device="cpu").module
    module.save_pretrained(tmp_path / "SAVED")
    again: Any = sonde.load(str(tmp_path / "SAVED"), device="cpu").module
    assert again.state_dict().keys() == module.state_dict().keys()
    assert torch.equal(again.classifier.codes, module.classifier.codes)


@pytest.mark.slow
def test_too_few_rows_to_calibrate_are_told(run, tmp_path):
    words = ("compress", "sonde:digits", "sonde:digits/train", "--held", 8, "--quiet")
    few = run(*words, "--limit", 8, "-o", tmp_path / "A")
    assert "classifier is calibrated on 8 rows, but each row has 64 features" in few.err
    assert "Give --limit 64 or more" in few.err
    assert "calibrated on" not in run(*words, "--limit", 64, "-o", tmp_path / "B").err


@pytest.mark.slow
def test_an_explanation_unpacks_it_and_is_that_of_the_model(run, rounded):
    words = ("sonde:digits/test", "--limit", 3, "--methods", "saliency", "--json")
    ran, plain = run("explain", rounded, *words), run("explain", "sonde:digits", *words)
    assert "packed layers are unpacked, because no gradient flows through packed layers" in ran.err
    assert "unpacked" not in plain.err
    found, wanted = (one.json()["methods"][0] for one in (ran, plain))
    assert found["effect"] == pytest.approx(wanted["effect"], abs=0.05)
    assert found["sanity"]["passed"]  # all weights are redrawn, those of packed layers too


@pytest.mark.parametrize(
    "words",
    [
        ("forget", "--forget", "sonde:digits", "--of-class", 3),
        ("steer", "--positive", "sonde:docstrings", "--negative", "sonde:code"),
        (
            "erase",
            "--positive",
            "sonde:docstrings",
            "--negative",
            "sonde:code",
            "--site",
            "classifier",
        ),
    ],
)
def test_edits_refuse_it_before_they_read_anything(run, rounded, tmp_path, monkeypatch, words):
    def read(*_, **__):
        raise AssertionError("data were read")

    monkeypatch.setattr("sonde.data.open_inputs", read)
    monkeypatch.setattr("sonde.data.contrast", read)
    ran = run("edit", words[0], rounded, *words[1:], "-o", tmp_path / "NEW")
    assert ran.code == 2
    assert "cannot be changed. Take the original model" in ran.err
    assert f"(sonde compress undo {rounded} -o OLD)" in ran.err.replace("\n", " ")
    assert not (tmp_path / "NEW").exists()


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """Return the folder of a small convolutional net."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}
    config = ResNetConfig(num_channels=1, num_labels=10, layer_type="basic", **sizes)  # pyright: ignore
    folder = tmp_path_factory.mktemp("conv") / "NET"
    ResNetForImageClassification(config).save_pretrained(folder)
    recipe = "preprocessor_config.json"
    copy2(Path(model_directory("sonde:digits")) / recipe, folder / recipe)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "form", "method"),
    [
        (("--to", "50%"), "% zeros", "SparseGPT(remove=0.5"),
        (("--to", "2:4", "--method", "prune-weights"), "50.0% zeros", "PruneWeights(remove=0.5"),
        (("--to", "rank8"), "rank 8", "LowRankWeights(remove=0.5, rank=8"),
        (("--to", "1bit"), "1 bit, groups of", "SignQuant(bits=1"),
        (("--method", "coordinate_rounding(bits=3, sweeps=2)"), "3 bits", "CoordinateRounding("),
    ],
)
def test_every_kind_of_smaller_weight_is_packed_opened_and_undone(
    run, tmp_path, words, form, method
):
    new, old = tmp_path / "SMALL", Path(model_directory("sonde:digits"))
    data = ("sonde:digits", "sonde:digits/train", "--limit", 8, "--held", 20)
    told = run("compress", *data, *words, "-o", new, "--json").json()
    assert told["bytes"][1] == (new / "model.safetensors").stat().st_size
    assert told["bytes"][1] < 0.7 * told["bytes"][0]
    assert method in told["method"]
    assert told["packed"]
    assert all(form in one["form"] for one in told["packed"])
    kept = sum(one["bytes"] for one in told["packed"])
    assert told["bytes"][1] > kept > 0.3 * told["bytes"][1]
    assert form in new.with_name("SMALL.html").read_text()
    opened: Any
    plain: Any
    opened, plain = (sonde.load(str(at), device="cpu").module for at in (new, old))
    names = [one["layer"] for one in told["packed"]]
    if form.endswith("zeros"):
        assert all(type(opened.get_submodule(n)) is torch.nn.Linear for n in names)
        gone = [float((opened.get_submodule(n).weight == 0).double().mean()) for n in names]
        assert gone == pytest.approx([0.5] * len(names), abs=0.02)
        opened.save_pretrained(tmp_path / "AGAIN")  # an ordinary model again
        again = sonde.load(str(tmp_path / "AGAIN"), device="cpu").module
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again(x).logits, opened(x).logits)
        assert not torch.equal(plain(x).logits, opened(x).logits)
    assert run("compress", "undo", new, "-o", tmp_path / "OLD").code == 0
    for file in old.iterdir():
        assert filecmp.cmp(file, tmp_path / "OLD" / file.name, shallow=False)


@pytest.mark.slow
@pytest.mark.truth("bytes of the net's own parameters")
@pytest.mark.parametrize(("words", "kind"), [((), "convolution"), (("--layers", "*"), "")])
def test_the_first_line_says_which_part_of_the_weights_was_packed(
    run, convolutional, tmp_path, words, kind
):
    data = (convolutional, "sonde:digits/train", "--limit", 8, "--held", 8)
    told = run("compress", *data, "--to", "60%", *words, "-o", tmp_path / "S", "--json").json()
    module = sonde.load(str(convolutional), device="cpu").module
    mine = {torch.nn.Linear} | (set() if kind else {torch.nn.Conv2d})
    layers = [m for m in module.modules() if type(m) in mine]
    packed = sum(m.weight.numel() * 4 for m in layers)
    assert told["covered"]["bytes"] == packed
    whole = sum(x.numel() * 4 for x in module.state_dict().values() if x.is_floating_point())
    assert told["covered"]["of"] == whole
    verdict = document_of(told).verdict
    assert verdict.startswith(f"{share(packed / whole)} of the weights compressed (")
    assert ("--layers '*' compresses convolutions" in verdict) == bool(kind)
    assert set(told["nameable"]) == ({kind} if kind else set())


@pytest.mark.slow
def test_convolutions_that_are_named_are_pruned_and_packed(run, convolutional, tmp_path):
    new = tmp_path / "SMALL"
    data = (convolutional, "sonde:digits/train", "--limit", 8, "--held", 8, "--layers", "*")
    told = run("compress", *data, "--to", "60%", "-o", new, "--json").json()
    assert told["bytes"][1] < 0.6 * told["bytes"][0]
    opened = sonde.load(str(new), device="cpu").module
    convolutions = [m for m in opened.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) > 4
    for part in convolutions:
        assert float((part.weight == 0).double().mean()) > 0.55  # more where inputs are always 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [("4bit", "rtn"), ("4bit", "gptq"), ("1bit", "sign_quant")])
def test_a_size_that_packs_no_convolution_leaves_its_weights_alone(
    run, convolutional, tmp_path, size
):
    data = (convolutional, "sonde:digits/train", "--limit", 8, "--held", 8)
    how = ("--to", size[0], "--method", size[1])
    told = run("compress", *data, *how, "--layers", "*", "-o", tmp_path / "S", "--json").json()
    assert told["packed"]
    old, new = (sonde.load(str(at), device="cpu").module for at in (convolutional, tmp_path / "S"))
    parts = dict(old.named_modules())
    names = [name for name, part in parts.items() if isinstance(part, torch.nn.Conv2d)]
    assert len(names) > 4
    for name in names:
        assert torch.equal(parts[name].weight, new.get_submodule(name).weight)
    assert "not compressed: convolution" in document_of(told).verdict
    refused = run("compress", *data, *how, "--layers", names[0], "-o", tmp_path / "T")
    assert refused.code == 2
    assert f"{names[0]} would be rounded without getting smaller" in refused.err
    assert not (tmp_path / "T").exists()


@pytest.mark.slow
def test_a_model_whose_page_is_interrupted_is_taken_away(run, tmp_path, monkeypatch):
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sonde.cli.compress.present", stopped)
    words = ("compress", "sonde:digits", "sonde:digits/train", "--limit", 8, "--held", 8)
    ran = run(*words, "-o", tmp_path / "SMALL")
    assert "No incomplete file is left" in ran.err
    assert list(tmp_path.iterdir()) == []
