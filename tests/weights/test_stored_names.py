"""Folders as ``save_pretrained`` writes them: tensors have other names there, or are joined."""

import copy
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import sonde
from sonde.compress import RTN, PruneWeights
from sonde.core.errors import InputError, SondeWarning
from sonde.weights import Exchange, MergeRule, RewritePlan, merge_models, save_edited, undo
from sonde.weights._weight_file import file_hash
from sonde.weights.factory_folder import check_change
from sonde.weights.own_config import with_own_config

SEEN: Any = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
IMAGES: Any = {**SEEN, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
TEXTS: Any = {**SEEN, "intermediate_size": 24, "vocab_size": 19, "max_position_embeddings": 32}


@dataclass(frozen=True)
class Case:
    kind: str
    options: Any
    blocks: str
    layer: str


CASES = {
    "vit": Case("ViTForImageClassification", IMAGES, "vit.layers", "attention.v_proj"),
    "beit": Case("BeitForImageClassification", IMAGES, "beit.layers", "attention.q_proj"),
    "gpt_neox": Case("GPTNeoXForCausalLM", TEXTS, "gpt_neox.layers", "mlp.dense_h_to_4h"),
    "joined experts": Case(
        "MixtralForCausalLM",
        {**TEXTS, "num_local_experts": 3, "num_key_value_heads": 1, "head_dim": 8},
        "model.layers",
        "self_attn.v_proj",
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for word, case in CASES.items():
        kind: Any = getattr(transformers, case.kind)
        torch.manual_seed(0)
        model = kind(kind.config_class(**case.options)).eval()
        at = made[word] = tmp_path_factory.mktemp("saved") / "model"
        model.save_pretrained(at, max_shard_size="20KB")
    return made


def hashes(folder: Path):
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in folder.rglob("*")}


def stored(folder: Path):
    return {n: x for file in folder.glob("*.safetensors") for n, x in load_file(file).items()}


def assert_written(plan, folder, tmp_path):
    """Assert that the folder opens as the folded model and comes back; return its tensors."""
    new = save_edited(str(folder), plan, tmp_path / "new").folder
    again = sonde.load(str(new), device="cpu").module.state_dict()
    wanted = plan.fold(sonde.load(str(folder), device="cpu")).state_dict()
    assert again.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(again[name], wanted[name])] == []
    undo(new, tmp_path / "old")
    assert hashes(tmp_path / "old") == hashes(folder)
    return stored(new)


@pytest.mark.truth("transformers' save_pretrained")
@pytest.mark.parametrize("word", CASES)
def test_an_edited_folder_has_the_names_of_the_original(folders, tmp_path, word):
    case, model = CASES[word], sonde.load(str(folders[word]), device="cpu")
    state = model.module.state_dict()
    name = f"{case.blocks}.1.{case.layer}.weight"
    moved = RewritePlan.of(model, {name: Exchange(state[name] + 0.25)})
    before, after = stored(folders[word]), assert_written(moved, folders[word], tmp_path)
    assert after.keys() == before.keys()
    assert len([n for n in before if not torch.equal(before[n], after[n])]) == 1


@pytest.mark.truth("transformers' save_pretrained")
def test_experts_that_loading_joins_are_written_one_by_one(folders, tmp_path):
    model = sonde.load(str(folders["joined experts"]), device="cpu")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    x = model.module.state_dict()[name]
    plan = RewritePlan.of(model, {name: Exchange(torch.cat([2 * x[:1], x[1:]]))})
    before = stored(folders["joined experts"])
    after = assert_written(plan, folders["joined experts"], tmp_path)
    assert after.keys() == before.keys()
    changed = {n: after[n] / before[n] for n in before if not torch.equal(before[n], after[n])}
    expert = "model.layers.1.block_sparse_moe.experts.0"
    assert changed.keys() == {f"{expert}.w1.weight", f"{expert}.w3.weight"}
    assert all(torch.equal(ratio, torch.full_like(ratio, 2)) for ratio in changed.values())


@pytest.mark.truth("transformers' save_pretrained")
@pytest.mark.parametrize("word", CASES)
def test_later_blocks_get_the_names_of_dropped_blocks(folders, tmp_path, word):
    model = sonde.load(str(folders[word]), device="cpu")
    plan = RewritePlan.shaped(model, {}, blocks={CASES[word].blocks: (0, 2)})
    plan = with_own_config(model, plan)
    new, old = assert_written(plan, folders[word], tmp_path), stored(folders[word])
    assert new.keys() < old.keys()
    last = {n: re.sub(r"(layers?)\.2\.", r"\1.1.", n) for n in old if re.search(r"layers?\.2\.", n)}
    assert len(old) - len(new) == len(last)
    assert all(torch.equal(new[now], old[before]) for before, now in last.items())


@pytest.mark.parametrize("word", CASES)
@pytest.mark.parametrize("method", [RTN(bits=4), PruneWeights(0.5)])
def test_packed_layers_are_found_again(folders, tmp_path, word, method):
    model = sonde.load(str(folders[word]), device="cpu")
    plan = method.plan(model)
    assert f"{CASES[word].blocks}.1.{CASES[word].layer}" in plan.forms
    assert_written(plan, folders[word], tmp_path)


@pytest.mark.parametrize("word", ["vit", "joined experts"])
def test_an_edit_that_loading_rounds_is_told_under_any_name(folders, tmp_path, word):
    case = CASES[word]
    half: Any = getattr(transformers, case.kind).from_pretrained(
        folders[word], dtype=torch.bfloat16
    )
    half.save_pretrained(tmp_path / "half")
    model = sonde.load(str(tmp_path / "half"), device="cpu")
    leaf = "mlp.experts.down_proj" if word == "joined experts" else f"{case.layer}.weight"
    name = f"{case.blocks}.1.{leaf}"
    change = Exchange(model.module.state_dict()[name].double() + 1e-4)
    save_edited(model, RewritePlan.of(model, {name: change}), tmp_path / "new")
    with pytest.warns(SondeWarning, match="in float32, but loads as bfloat16"):
        sonde.load(str(tmp_path / "new"), device="cpu")


@pytest.mark.truth("by hand")
def test_folders_that_name_tensors_differently_are_merged(folders, tmp_path):
    module: Any = transformers.ViTForImageClassification.from_pretrained(folders["vit"])
    name = "vit.layers.1.attention.v_proj.weight"
    with torch.no_grad():
        module.state_dict()[name].mul_(3)
    module.save_pretrained(tmp_path / "inner", save_original_format=False)
    assert name in stored(tmp_path / "inner")
    said: list[str] = []

    @dataclass(frozen=True)
    class Halfway(MergeRule):
        def _merged(self, name, base, others):
            said.append(name)
            return (base + others[0]) / 2

    merge_models(str(folders["vit"]), [str(tmp_path / "inner")], Halfway(), tmp_path / "new",
                 keep=["vit.embeddings.*", "vit.layers.0.mlp.fc1.weight"])  # fmt: skip
    assert name in said
    assert "vit.layers.0.mlp.fc1.weight" not in said
    new, old = stored(tmp_path / "new"), stored(folders["vit"])
    assert new.keys() == old.keys()
    moved = [n for n in old if not torch.allclose(new[n], old[n])]
    assert moved == ["vit.encoder.layer.1.attention.attention.value.weight"]
    assert torch.allclose(new[moved[0]], 2 * old[moved[0]])


def test_a_model_that_is_not_its_folders_is_refused_before_anything_runs(folders, tmp_path):
    model = sonde.load(str(folders["vit"]), device="cpu")
    check_change(model, tmp_path / "new")
    other = copy.deepcopy(model.module)
    other.vit.layers[1].mlp.fc1 = torch.nn.Linear(16, 30)
    with pytest.raises(InputError, match=r"expected vit\.layers\.1\.mlp\.fc1\.weight of shape"):
        check_change(replace(model, module=other), tmp_path / "new")
