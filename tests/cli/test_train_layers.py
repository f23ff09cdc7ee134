"""``sonde train --insert``: what it trains, writes, opens again and refuses."""

import json
import shutil
import subprocess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sonde
from cli_case import in_a_new_process, run_words
from sonde.core.errors import InputError, StateError
from sonde.engine.steps import Descent
from sonde.layers import UnitGate, inserted_layers

WORDS = ("train", "sonde:digits", "sonde:digits/train", "--limit", 64, "--held", 60)
GATE = ("--insert", "unit_gate(initial=0.3)@blocks.1", "--rate", 1e-2, "--epochs", 1)


def logits(model) -> torch.Tensor:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.module(x).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a gate, and say where and what was told."""
    new = tmp_path_factory.mktemp("layers") / "NEW"
    return new, run_words(*WORDS, *GATE, "-o", new, "--json").json()


@pytest.mark.truth("the layer put into the old model by hand, from the file")
def test_the_folder_opens_as_the_old_model_with_the_trained_layer(trained):
    new, told = trained
    (state,) = [load_file(new / "inserted.layers" / "layers.safetensors")]
    c = state["vit.layers.1/c"]
    assert (c - 0.3).abs().max() > 1e-3
    gate = UnitGate(64, initial=0.3)
    gate.c.data.copy_(c)
    old = sonde.load("sonde:digits", device="cpu")
    wanted = logits(sonde.inserted(old, {"blocks.1": gate}))
    opened = sonde.load(str(new), device="cpu")
    assert torch.equal(logits(opened), wanted)
    assert torch.equal(logits(sonde.removed(opened)), logits(old))
    (layer,) = told["layers"]
    assert (layer["layer"], layer["site"], layer["n_parameters"]) == (
        "UnitGate",
        "vit.layers.1",
        64,
    )
    assert 0 < layer["moved"] < 0.1


def test_what_transformers_saves_of_it_is_not_opened_without_its_layers(trained, tmp_path):
    module: Any = sonde.load(str(trained[0]), device="cpu").module
    module.save_pretrained(tmp_path / "SAVED")
    with pytest.raises(InputError, match=r"holds vit\.layers\.1\.inserted\.c of a layer"):
        sonde.load(str(tmp_path / "SAVED"), device="cpu")


@pytest.mark.truth("differences of the arms' losses; numbers of parameters by torch")
def test_the_page_compares_with_as_many_parameters_trained_elsewhere(trained):
    new, told = trained
    (seed,) = told["seeds"]
    gap = seed["with"]["loss"]["value"] - seed["without"]["loss"]["value"]
    assert told["gain"]["loss"]["value"] == pytest.approx(gap)
    assert seed["without"]["loss"] != told["before"]["loss"]
    assert told["scope_without"] == "last:64"
    page = new.with_suffix(".html").read_text()
    assert "A single seed cannot show whether UnitGate at vit.layers.1 helped" in page
    assert "with equally many other parameters trained instead" in page


@pytest.mark.slow
def test_a_scan_against_the_old_model_finds_what_moved(run, trained):
    new, _ = trained
    words = ("scan", new, "sonde:digits/test", "--versus-model", "sonde:digits", "--limit", 40)
    found = run(*words, "--json").json()["versus_model"]
    moved = {x["site"]: x["movement"]["size"] for x in found["matches"]}
    assert moved["vit.layers.0:out"] == 0
    assert moved["vit.layers.1:out"] > 0


def test_the_original_comes_back_and_compression_is_refused(run, trained, tmp_path):
    new, _ = trained
    assert run("edit", "undo", new, "-o", tmp_path / "OLD").code == 0
    assert not inserted_layers(sonde.load(str(tmp_path / "OLD"), device="cpu"))
    words = ("compress", new, "sonde:digits/train", "-o", tmp_path / "SMALL")
    assert "has inserted layers" in run(*words).error()


@pytest.mark.slow
def test_a_stopped_training_leaves_its_checkpoint_alone_and_goes_on(
    run, trained, tmp_path, monkeypatch
):
    new, step, n = tmp_path / "AGAIN", Descent.step, iter(range(99))

    def stopping(self, loss):
        if next(n) == 1:
            raise KeyboardInterrupt
        return step(self, loss)

    monkeypatch.setattr(Descent, "step", stopping)
    assert run(*WORDS, *GATE, "-o", new).code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["AGAIN.run"]
    assert run(*WORDS, *GATE, "-o", new, "--quiet").code == 0
    for file in ("layers.json", "layers.safetensors"):
        files = [place / "inserted.layers" / file for place in (new, trained[0])]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_wider_scope_trains_the_same_beside_it_without_the_layers(tmp_path):
    new = tmp_path / "NEW"
    more = ("--insert", "adapter(width=3)@blocks.0", "--insert", "experts@blocks.2")
    words = ("--scope", "norms", "--rate", 1e-2, "--epochs", 1, "-o", new, "--json")
    told = run_words(*WORDS, *more, *words).json()
    assert [one["layer"] for one in told["layers"]] == ["Adapter", "Experts"]
    assert told["seeds"][0]["without"]["loss"] != told["before"]["loss"]
    opened, old = sonde.load(str(new), device="cpu"), sonde.load("sonde:digits", device="cpu")
    bare = dict(sonde.removed(opened).module.named_parameters())
    moved = [n for n, p in old.module.named_parameters() if not torch.equal(p, bare[n])]
    assert moved
    assert all("norm" in name for name in moved)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("layers.safetensors", lambda old: old[:-9], "a file was changed afterwards"),
        ("layers.json", lambda old: old.replace(b"0.3", b"0.4"), "a file was changed afterwards"),
        ("layers.json", None, r"layers\.json cannot be read"),
    ],
)
def test_changed_files_of_layers_are_refused(trained, tmp_path, file, change, message):
    place = shutil.copytree(trained[0], tmp_path / "NEW") / "inserted.layers" / file
    if change is None:
        place.unlink()
    else:
        place.write_bytes(change(place.read_bytes()))
    with pytest.raises(StateError, match=message):
        sonde.load(str(tmp_path / "NEW"), device="cpu")


def test_layers_of_another_model_are_refused(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "NEW")
    config = json.loads((folder / "config.json").read_text())
    deep = sonde.load("sonde:digits", device="cpu").module.state_dict()
    assert "vit.layers.3.layernorm_before.weight" in deep
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StateError, match="do not fit this model"):
        sonde.load(str(folder), device="cpu")


def test_the_list_says_which_layers_can_be_inserted(run):
    found = {x["layer"]: x for x in run("train", "--list", "--json").json() if "layer" in x}
    assert found["adapter"]["needs"] == ["width"]
    assert found["unit_gate"]["needs"] == []
    assert "exchange" not in found
    assert "unit_gate" in run("train", "--list").out


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("gate@blocks.1", "no layer is called 'gate'"),
        ("unit_gate", "expected LAYER@SITE"),
        ("unit_gate(size=3)@blocks.1", "unit_gate has no parameter 'size'"),
        ("adapter@blocks.1", "expected a value of width, got none. Add it, as adapter(width=3)"),
        ("readout@conv1", "got Readout. Use it in Python (sonde.layers.Readout), or insert one of"),
        ("readout@blocks.1", "keeps the shape of one site"),
        ("scaled_skip@blocks.1", "as scaled_skip(how='learned')@blocks.1"),
        ("unit_gate@conv1", "--insert unit_gate@conv1: resolve: expected a module, got 'conv1'"),
        ("unit_gate@blocks.9", "this model has 4 blocks"),
        ("unit_gate@blocks", "expected one site, got 4"),
        ("unit_gate@blocks.1:probs", "expected the path of one module"),
        ("hopfield(mode='pool')@blocks.1", "keeps the shape"),
        ("adapter(dim=32,width=3)@blocks.1", "(*axes dim=32), got (2, 17, 64)"),
        ("vector_quantizer(strength=0.0)@blocks.1", "has parameters to train, got VectorQuantizer"),
    ],
)
def test_layers_that_do_not_fit_are_refused_before_anything_is_written(
    run, tmp_path, layer, message
):
    small = ("train", "sonde:digits", "sonde:digits/train", "--limit", 2, "--held", 2)
    assert message in run(*small, "--insert", layer, "-o", tmp_path / "NEW").error()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_language_model_may_not_read_the_answers(run, tmp_path):
    words = ("train", "sonde:stdlib", "sonde:stdlib/train", "--limit", 2, "--held", 2)
    layer = ("--insert", "attention@blocks.1", "-o", tmp_path / "NEW")
    assert "would see the correct answers" in run(*words, *layer).error()


OPENED = """
import sys
import {names}
import torch
from transformers import AutoModel, AutoModelForImageClassification
x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    whole = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
    body = AutoModel.from_pretrained(sys.argv[1]).eval()
    gap = whole.vit(x).last_hidden_state - body(x).last_hidden_state
print([n for n, _ in whole.named_parameters() if "inserted" in n], float(gap.abs().max()))
print([n for n, _ in body.named_parameters() if "inserted" in n])
print(whole(x).logits[0].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", ["sonde, transformers", "transformers, sonde"])
def test_transformers_opens_it_with_its_layers(trained, names):
    lines = in_a_new_process(OPENED.format(names=names), str(trained[0])).stdout.splitlines()
    assert lines[0] == "['vit.layers.1.inserted.c'] 0.0"
    assert lines[1] == "['layers.1.inserted.c']"
    opened = sonde.load(str(trained[0]), device="cpu")
    assert json.loads(lines[2]) == logits(opened)[0].tolist()
    assert not hasattr(opened.module.config, "quantization_config")
    assert not getattr(opened.module, "is_quantized", False)


@pytest.mark.slow
def test_without_sonde_transformers_says_that_something_is_missing(trained):
    with pytest.raises(subprocess.CalledProcessError) as found:
        in_a_new_process(OPENED.format(names="transformers"), str(trained[0]))
    assert "import sonde" in found.value.stderr


@pytest.mark.slow
def test_a_model_with_layers_is_edited_and_keeps_them(run, trained, tmp_path):
    new = tmp_path / "EDITED"
    words = ("--forget", "sonde:digits", "--of-class", 3, "--method", "dampen", "--limit", 40)
    ran = run("edit", "forget", trained[0], *words, "--force", "-o", new)
    assert ran.code == 0, ran.err
    assert inserted_layers(sonde.load(str(new), device="cpu"))
