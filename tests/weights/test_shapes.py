"""Plans that alter shapes: folded, written, opened by sonde and transformers, and taken back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import sonde
from models import llama
from sonde.core.errors import StateError, StoreError
from sonde.weights import Exchange, LinearBlock, Resized, RewritePlan, Thin, undo
from sonde.weights._weight_file import file_hash
from sonde.weights.forms import put_form
from sonde.weights.own_config import with_own_config

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
LISTED = "model.layers"


@pytest.fixture
def saved(tmp_path):
    """A model of four blocks in shards, as a folder."""
    config = llama().config
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path / "old", max_shard_size="20KB")
    return tmp_path / "old"


def hashes(folder):
    return {file.name: file_hash(file) for file in folder.iterdir()}


def layers_of(module: Any) -> Any:
    return module.model.layers


def written(plan, saved):
    """Save a plan; check that the folder opens as the folded model, generates and comes back."""
    model = sonde.load(str(saved), device="cpu")
    new, folder = plan.fold(model), saved.with_name("new")
    plan.save(model, folder)
    opened: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = new(IDS).logits
        assert not torch.equal(expected, model.module(IDS).logits)
        for other in (opened, sonde.load(str(folder), device="cpu").module):
            assert other.state_dict().keys() == new.state_dict().keys()
            assert torch.equal(other(IDS).logits, expected)
        told = [one.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=cache)
                for one in (opened, new) for cache in (True, False)]  # fmt: skip
    assert all(torch.equal(told[0], one) for one in told[1:])
    undo(folder, saved.with_name("again"))
    assert hashes(saved.with_name("again")) == hashes(saved)
    with pytest.raises(StateError, match="is not the tensor that this plan was made for"):
        plan.fold(new)
    return json.loads((folder / "config.json").read_text())


def test_fewer_blocks_open_as_an_ordinary_model(saved):
    model = sonde.load(str(saved), device="cpu")
    plan = RewritePlan.shaped(model, {}, "fewer", blocks={LISTED: (0, 2, 3)})
    told, blocks = written(with_own_config(model, plan), saved), layers_of(model.module)
    assert told["num_hidden_layers"] == 3
    assert "quantization_config" not in told
    kept = layers_of(plan.fold(model))
    assert [block.self_attn.layer_idx for block in kept] == [0, 1, 2]
    assert torch.equal(kept[1].mlp.up_proj.weight, blocks[2].mlp.up_proj.weight)
    assert [block.self_attn.layer_idx for block in blocks] == [0, 1, 2, 3]


def test_tensors_of_blocks_that_move_are_changed_under_their_new_names(saved):
    model = sonde.load(str(saved), device="cpu")
    named, draw = model.module.state_dict(), torch.Generator().manual_seed(0)
    whole, thin = (f"{LISTED}.{i}.mlp.up_proj.weight" for i in (2, 3))
    factors = (torch.randn(n, 3, generator=draw) for n in named[thin].shape)
    left, right = (x.half().float() for x in factors)
    changes = {whole: Exchange(2 * named[whole]), thin: Thin(left, right.T)}
    plan = RewritePlan.shaped(model, changes, "both", blocks={LISTED: (0, 2, 3)})
    told = written(with_own_config(model, plan), saved)
    assert list(told["quantization_config"]["layers"]) == [f"{LISTED}.2.mlp.up_proj"]
    kept = layers_of(plan.fold(model))
    assert torch.equal(kept[1].mlp.up_proj.weight, 2 * named[whole])
    assert torch.equal(kept[2].mlp.up_proj.left, left)


@pytest.mark.parametrize("blocks", [(0, -1, 3), (-1, 1, 2, 3), (0, 1, -2, -1)])
def test_linear_maps_take_the_place_of_blocks(saved, blocks):
    model = sonde.load(str(saved), device="cpu")
    draw = torch.Generator().manual_seed(0)
    width, maps = model.config.hidden_size, [i for i in blocks if i < 0]
    changes = {}
    for i in maps:
        changes[f"{LISTED}.{i}.weight"] = Exchange(torch.randn(width, width, generator=draw))
        changes[f"{LISTED}.{i}.bias"] = Exchange(torch.randn(width, generator=draw))
    forms = {LISTED: {"linear": {str(i): [width, width] for i in maps}, "first": False}}
    plan = RewritePlan.shaped(model, changes, "linear", forms=forms, blocks={LISTED: blocks})
    told = written(with_own_config(model, plan), saved)
    assert told["num_hidden_layers"] == len(blocks)
    assert list(told["quantization_config"]["layers"]) == [LISTED]
    new = layers_of(plan.fold(model))
    assert [isinstance(block, LinearBlock) for block in new] == [i < 0 for i in blocks]


@pytest.mark.parametrize("even", [True, False])
def test_narrower_layers_are_told_by_the_option_or_one_by_one(saved, even):
    model = sonde.load(str(saved), device="cpu")
    state, changes = model.module.state_dict(), {}
    for i in range(4):
        kept = torch.arange(1, model.config.intermediate_size, 2 if even or i else 3)
        for part, axis in (("up", 0), ("gate", 0), ("down", 1)):
            name = f"{LISTED}.{i}.mlp.{part}_proj.weight"
            changes[name] = Resized(state[name].index_select(axis, kept))
    plan = with_own_config(model, RewritePlan.of(model, changes, "narrow"))
    told = written(plan, saved)
    half = model.config.intermediate_size // 2
    assert told["intermediate_size"] == (half if even else 2 * half)
    assert ("quantization_config" in told) is not even
    layer = layers_of(plan.fold(model))[1].mlp.up_proj
    assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_that_equal_a_size_by_chance_stay(tmp_path, dtype):
    config, n = llama().config, llama().config.intermediate_size
    by_chance = {"eos_token_id": 2, "stop_ids": [5, 6], "max_position_embeddings": n}
    for name, value in {"num_hidden_layers": 2, **by_chance}.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    module = LlamaForCausalLM(config).to(getattr(torch, dtype))
    module.save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    state = {n: x for n, x in model.module.state_dict().items() if n.startswith(f"{LISTED}.1.mlp")}
    kept = torch.arange(0, n, 3)
    changes = {name: Resized(x.index_select(1 if "down" in name else 0, kept))
               for name, x in state.items()}  # fmt: skip
    plan = with_own_config(model, RewritePlan.shaped(model, changes, blocks={LISTED: (1,)}))
    assert plan.config == {"num_hidden_layers": 1, "intermediate_size": len(kept)}
    plan.save(model, tmp_path / "new")
    told = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "quantization_config" not in told
    assert {name: told[name] for name in by_chance} == by_chance
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert torch.equal(opened(IDS).logits, plan.fold(model)(IDS).logits)


def test_options_that_give_other_answers_are_not_taken(tmp_path):
    torch.manual_seed(0)
    sizes: Any = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": 13}
    config = GPT2Config(**sizes, scale_attn_by_inverse_layer_idx=True, initializer_range=0.5)
    GPT2LMHeadModel(config).eval().save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = RewritePlan.shaped(model, {}, blocks={"transformer.h": (1, 2)})
    # the class scales by the number of a block, which a model of two blocks counts anew
    assert not with_own_config(model, plan).config
    plan.save(model, tmp_path / "new")
    again = sonde.load(str(tmp_path / "new"), device="cpu").module
    assert torch.equal(again(IDS).logits, plan.fold(model)(IDS).logits)


def test_a_configuration_of_another_model_is_refused():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for name, told, message in (
        ("7", {"shapes": {"weight": [2, 4]}}, "the model has no such layer"),
        ("0", {"colour": 3}, "which this version does not know"),
        ("1", {"bits": 4, "group": 8}, "expected a linear layer"),
        ("0", {"shapes": {}, "numbers": {"forward": 3}}, "a part with a whole number forward"),
        ("0", {"blocks": [0]}, "a list of more than 0 blocks"),
        ("1", {"shapes": {"scale": [3]}}, "a part with scale"),
    ):
        with pytest.raises(StoreError, match=message):
            put_form(net, name, told)


def test_layers_keep_numbers_of_their_new_shapes():
    net: Any = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Embedding(5, 4))
    put_form(net, "0", {"shapes": {"weight": [3, 2, 3, 3], "bias": [3]}, "numbers": {"groups": 1}})
    norm = {"weight": [3], "bias": [3], "running_mean": [3], "running_var": [3]}
    put_form(net, "1", {"shapes": norm})
    put_form(net, "2", {"shapes": {"weight": [5, 2]}})
    assert repr(net[0]) == repr(nn.Conv2d(2, 3, 3))
    assert (net[1].num_features, net[2].embedding_dim) == (3, 2)
    assert net[1](net[0](torch.randn(2, 2, 5, 5))).shape == (2, 3, 3, 3)


def test_the_folder_of_a_part_keeps_its_prefix(saved, tmp_path):
    base: Any = LlamaForCausalLM.from_pretrained(saved).model
    base.save_pretrained(tmp_path / "base")
    model = sonde.load(LlamaForCausalLM.from_pretrained(saved).eval())
    plan = RewritePlan.shaped(model, {}, blocks={LISTED: (1, 3)})
    folder = Path(plan.save(str(tmp_path / "base"), tmp_path / "new").folder)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
    undo(folder, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "base")
