"""Models merged from folder to folder: the weights, the other files, and what is refused."""

import json
import shutil

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, ResNetConfig, ResNetForImageClassification

import sonde
from cli_case import run_words
from models import llama
from sonde.core.errors import InputError
from sonde.edit import FisherMerge, Slerp, TaskArithmetic, Ties
from sonde.weights import merge_models
from sonde.weights._weight_file import file_hash


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A base and two models of it, the base whole, the others in shards."""
    place = tmp_path_factory.mktemp("three")
    base = llama()
    base.save_pretrained(place / "base")
    (place / "base" / "README.md").write_text("the base")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(place / "base")
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(place / name, max_shard_size="30KB")
    return place


def weights(folder):
    return sonde.load(str(folder)).module.state_dict()


@pytest.mark.truth("the sum of whole models in memory")
def test_folders_are_merged_like_models_in_memory(three, tmp_path):
    names = ("base", "a", "b")
    base, first, second = (weights(three / name) for name in names)
    merge_models(three / "base", [three / "a", three / "b"], TaskArithmetic(0.5), tmp_path / "new")
    for name, x in weights(tmp_path / "new").items():
        expected = base[name] + 0.5 * (first[name] - base[name] + second[name] - base[name])
        torch.testing.assert_close(x, expected)
    assert (tmp_path / "new" / "README.md").read_text() == "the base"
    told = json.loads((tmp_path / "new.patch" / "patch.json").read_text())
    assert told["method"] == "TaskArithmetic(weight=0.5)"
    assert [source["model"] for source in told["sources"]] == [str(three / n) for n in names]
    files = told["sources"][1]["files"]
    assert len(files) > 2
    assert all(file_hash(three / "a" / file) == digest for file, digest in files.items())
    with pytest.raises(InputError, match="was merged from"):
        sonde.undo(tmp_path / "new", tmp_path / "old")


def test_the_command(three, tmp_path):
    base, a, b = three / "base", three / "a", three / "b"
    words = ("edit", "merge", base, a, b, "--density", 0.5, "--quiet", "--json")
    ran = run_words(*words, "-o", tmp_path / "one", "--keep", "lm_head.*")
    assert ran.code == 0, ran.err
    assert ran.json()["n_kept"] == 1
    assert ran.json()["method"] == "Ties(density=0.5, weight=1.0)"
    merged, old = weights(tmp_path / "one"), weights(base)
    assert torch.equal(merged["lm_head.weight"], old["lm_head.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    others = [weights(three / n)[name] for n in "ab"]
    assert torch.equal(merged[name], Ties(0.5).merge(name, old[name], others))
    again = run_words(*words, "-o", tmp_path / "two", "--keep", "lm_head.*")
    assert again.code == 0
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert file_hash(files[0]) == file_hash(files[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["base"], "expected a base model and at least one fine-tuned model"),
        (["base", "a", "--remove", "0.5"], "--remove: the method ties has no such parameter"),
        (["base", "a", "b", "--method", "slerp"], "Slerp takes 1 model beside the base, got 2"),
        (["base", "a", "--keep", "head.*"], "no tensor of"),
        (["base", "sonde:stdlib"], "another vocabulary|not made from the same base"),
        (["base", "a", "--output", "base"], "not empty"),
        (["base", "a", "--method", "tie"], "expected one of"),
    ],
)
def test_what_cannot_be_merged_is_refused(three, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(three)
    before = sorted(path.name for path in three.iterdir())
    given = [] if "--output" in words else ["-o", tmp_path / "new"]
    ran = run_words("edit", "merge", *words, *given)
    assert any(part in ran.error() for part in said.split("|")), ran.err
    assert sorted(path.name for path in three.iterdir()) == before
    assert not list(tmp_path.iterdir())


def test_running_statistics_stay_the_bases(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    for seed, name in enumerate(("base", "other")):
        torch.manual_seed(seed)
        model = ResNetForImageClassification(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean += seed
        model.save_pretrained(tmp_path / name)
    with pytest.warns(sonde.SondeWarning, match="statistics of batch norm are taken from the base"):
        merge_models(tmp_path / "base", [tmp_path / "other"], Slerp(1.0), tmp_path / "new")
    new, base, other = (weights(tmp_path / name) for name in ("new", "base", "other"))
    for name, x in new.items():
        wanted = base if "running" in name or "tracked" in name else other
        torch.testing.assert_close(x, wanted[name])


@pytest.mark.parametrize(
    ("option", "value"),
    [("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}), ("num_attention_heads", 8)],
)
def test_models_that_compute_something_else_are_not_merged(three, tmp_path, option, value):
    shutil.copytree(three / "a", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config |= {"num_key_value_heads": value, "head_dim": 4} if "heads" in option else {}
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, option: value}))
    with pytest.raises(InputError, match=r"so the same weights compute something different"):
        merge_models(three / "base", [tmp_path / "a"], Ties(), tmp_path / "new")
    neutral = {"use_cache": False, "attention_dropout": 0.3, "_name_or_path": "elsewhere",
               "is_encoder_decoder": False}  # fmt: skip
    told = json.loads((three / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**told, **neutral}))
    merge_models(three / "base", [tmp_path / "a"], Ties(), tmp_path / "new")


def test_what_was_fitted_under_other_names_and_broken_weights_are_refused(three, tmp_path):
    fisher = {"layers.0.mlp.up_proj.weight": torch.ones(1)}
    with pytest.raises(InputError, match=r"got 'layers\.0\.mlp\.up_proj\.weight'"):
        merge_models(three / "base", [three / "a"], FisherMerge([fisher]), tmp_path / "new")
    model = LlamaForCausalLM.from_pretrained(three / "a")
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"1 of 32 that are not in model\.norm\.weight of model 1"):
        merge_models(three / "base", [tmp_path / "broken"], Ties(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
