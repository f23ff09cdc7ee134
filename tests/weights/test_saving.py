"""Edited models on the disk: what is rewritten, what is kept, and how all of it comes back."""

import copy
import functools
import json
import operator
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

import sonde
from cli_case import run_words
from models import llama
from sonde.core.errors import InputError, SondeError, SondeWarning, StateError, StoreError
from sonde.data.shipped import model_directory
from sonde.weights import Exchange, LowRank, RewritePlan, Sparse, patch, save_edited, saving, undo
from sonde.weights._told import write_told
from sonde.weights._weight_file import file_hash, write_hashed


def hashes(folder: Path):
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}


def plan_for(model, name, method="test"):
    x = dict(model.module.state_dict())[name]
    torch.manual_seed(0)
    thin = LowRank(1e-3 * torch.randn(x.shape[0], 1), torch.randn(1, x[0].numel()))
    return RewritePlan.of(model, {name: thin}, method)


def same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name].float(), second[name].float())]


@pytest.mark.parametrize("word", ["sonde:digits", "sonde:stdlib"])
def test_one_tensor_of_a_shipped_model_is_rewritten_and_comes_back(tmp_path, word):
    model, old = sonde.load(word, dtype="float32"), hashes(model_directory(word))
    name = next(n for n, x in model.module.state_dict().items() if x.ndim > 1 and "mlp" in n)
    plan = plan_for(model, name)
    saved = save_edited(model, plan, tmp_path / "new")
    new = hashes(tmp_path / "new")
    assert {file for file in old if new[file] != old[file]} == {"README.md", "model.safetensors"}
    assert new.keys() - old.keys() == {"README.original.md"}
    loaded = sonde.load(str(saved.folder), dtype="float32").module
    assert same_weights(plan.fold(model), loaded) == []
    assert same_weights(model.module, loaded) == [name]
    told = json.loads((saved.patch / "patch.json").read_text())
    assert told["method"] == "test"
    assert [one["change"] for one in told["tensors"].values()] == ["LowRank"]
    ran = run_words("edit", "undo", saved.folder, "-o", tmp_path / "old", "--json")
    assert ran.code == 0, ran.err
    assert hashes(tmp_path / "old") == old == ran.json()["files"]


def test_the_card_describes_the_changed_model(tmp_path):
    """Licence and tags stay; the accuracy of the original stays in a file of its own."""
    folder = tmp_path / "first"
    shutil.copytree(model_directory("sonde:digits"), folder)
    front = (
        "---\nlicense: mit\nmodel-index:\n- name: x\n  results:\n  - value: 0.97\ntags: [a]\n---\n"
    )
    original = front + "# digits\n\nTest accuracy: 0.97.\n"
    (folder / "README.md").write_text(original)
    name = "classifier.weight"
    for word, source, made in (("one", folder, "second"), ("two", tmp_path / "second", "third")):
        model = sonde.load(str(source), dtype="float32")
        save_edited(model, plan_for(model, name, word), tmp_path / made, figures={"Loss": "0.1"})
        card = (tmp_path / made / "README.md").read_text()
        assert card.startswith("---\nlicense: mit\ntags: [a]\n---\n")
        assert f"| Method | `{word}` |" in card
        assert "| Loss | 0.1 |" in card
        assert f"`{source.name}`" in card
        assert "0.97" not in card
        assert str(tmp_path) not in card
        assert (tmp_path / made / "README.original.md").read_text() == original


def test_an_edit_of_an_edit_comes_back_step_by_step(tmp_path):
    model = sonde.load("sonde:digits", dtype="float32")
    names = [n for n, x in model.module.state_dict().items() if "mlp" in n and x.ndim > 1][:2]
    save_edited(model, plan_for(model, names[0], "one"), tmp_path / "a")
    edited = sonde.load(str(tmp_path / "a"), dtype="float32")
    save_edited(edited, plan_for(edited, names[1], "two"), tmp_path / "b")
    undo(tmp_path / "b", tmp_path / "a2")
    assert hashes(tmp_path / "a2") == hashes(tmp_path / "a")
    assert hashes(tmp_path / "a2.patch") == hashes(tmp_path / "a.patch")
    undo(tmp_path / "a2", tmp_path / "old")
    assert hashes(tmp_path / "old") == hashes(model_directory("sonde:digits"))
    assert not (tmp_path / "old.patch").exists()


def saved_llama(folder, **options):
    config = llama().config
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    return sonde.load(str(folder))


def test_shards_and_other_copies_of_the_weights(tmp_path):
    model = saved_llama(tmp_path / "llama")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 2
    plan = plan_for(model, "model.layers.0.mlp.down_proj.weight")
    saved = plan.save(model, tmp_path / "new")
    assert not (tmp_path / "new" / "pytorch_model.bin").exists()
    assert same_weights(plan.fold(model), sonde.load(str(saved.folder)).module) == []
    undo(saved.folder, tmp_path / "old")
    assert hashes(tmp_path / "old") == hashes(tmp_path / "llama")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_one_side_of_tied_weights(tmp_path, name):
    model = saved_llama(tmp_path / "llama", tie_word_embeddings=True)
    tied = dict(model.module.named_parameters(remove_duplicate=False))
    assert tied["lm_head.weight"] is tied["model.embed_tokens.weight"]
    plan = plan_for(model, name)
    saved = plan.save(model, tmp_path / "new")
    loaded = sonde.load(str(saved.folder)).module
    assert same_weights(plan.fold(model), loaded) == []
    assert same_weights(model.module, loaded) == [name]
    undo(saved.folder, tmp_path / "old")
    assert hashes(tmp_path / "old") == hashes(tmp_path / "llama")


def test_a_small_edit_of_a_half_type_is_kept(tmp_path):
    saved_llama(tmp_path / "llama")
    half = LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    model = sonde.load(str(tmp_path / "half"))
    name = "model.layers.0.mlp.down_proj.weight"
    old = model.module.state_dict()[name]
    assert old.dtype == torch.float16
    value = old.flatten()[3].double() + 1e-6
    plan = RewritePlan.of(model, {name: Sparse(torch.tensor([3]), value.reshape(1))})
    plan.save(model, tmp_path / "new")
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        new = file.get_tensor(name)
        assert file.get_tensor("lm_head.weight").dtype == torch.float16
    assert new.dtype == torch.float32
    assert new.flatten()[3].item() == pytest.approx(value.item(), abs=1e-10)


def test_an_edit_that_loading_rounds_is_told(tmp_path):
    saved_llama(tmp_path / "llama")
    half = LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    model = sonde.load(str(tmp_path / "half"))  # all of one type: no word
    name = "model.layers.0.mlp.down_proj.weight"
    plan_for(model, name).save(model, tmp_path / "new")
    with pytest.warns(SondeWarning, match=rf"holds {name} in float32, but loads as bfloat16"):
        rounded = sonde.load(str(tmp_path / "new")).module.state_dict()[name].double()
    whole = sonde.load(str(tmp_path / "new"), dtype="float32").module.state_dict()[name].double()
    old = model.module.state_dict()[name].double()
    assert (rounded - whole).norm() > 0.01 * (whole - old).norm()


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    model = sonde.load("sonde:digits", dtype="float32")
    name = next(n for n, x in model.module.state_dict().items() if "mlp" in n and x.ndim > 1)
    plan = plan_for(model, name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        plan.save(model, tmp_path / "full")
    with pytest.raises(InputError, match="loaded from a folder"):
        plan.save(sonde.load(model.module), tmp_path / "new")
    with pytest.raises(StateError, match="the weights that this plan was made for"):
        plan.save(str(saved_path(tmp_path)), tmp_path / "new")
    other = RewritePlan.of(model, {name: Exchange(torch.zeros(2, 2))})
    with pytest.raises(sonde.ShapeError, match="another model"):
        other.save(model, tmp_path / "new")
    with pytest.raises(InputError, match="there is no patch"):
        undo(tmp_path / "llama", tmp_path / "new")
    plan.save(model, tmp_path / "edited")
    with (tmp_path / "edited" / "README.md").open("a") as file:
        file.write("changed")
    with pytest.raises(StateError, match=r"README\.md was changed since"):
        undo(tmp_path / "edited", tmp_path / "new")
    with (tmp_path / "edited.patch" / "patch.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(sonde.StoreError, match="damaged"):
        undo(tmp_path / "edited", tmp_path / "new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"full", "llama", "edited", "edited.patch"}


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_save_that_is_stopped_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch, nth):
    model = sonde.load("sonde:digits", dtype="float32")
    name = next(n for n, x in model.module.state_dict().items() if "mlp" in n and x.ndim > 1)
    plan, written = plan_for(model, name), []

    def stopped(path, pieces):
        written.append(path)
        if len(written) == nth:
            path.write_bytes(next(iter(pieces)))
            raise KeyboardInterrupt
        return write_hashed(path, pieces)

    with monkeypatch.context() as patched:
        for room in (saving, patch):
            patched.setattr(room, "write_hashed", stopped)
        with pytest.raises(KeyboardInterrupt):
            plan.save(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    assert plan.save(model, tmp_path / "new").patch.is_dir()


def saved_path(tmp_path):
    saved_llama(tmp_path / "llama")
    return tmp_path / "llama"


WRONG = (None, True, 7, -1e300, "", "../x", "/etc/x", [], {}, {"": 0}, {"..": "0" * 64}, ["a"])


def places_in(value, path=()):
    """Yield where each entry of nested mappings and lists stands."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(entries):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*path, key))


def sealed(path, told):
    """Write a patch.json of somebody who knows the format."""
    write_told(path, {k: v for k, v in told.items() if k not in ("format", "seal")})


@pytest.fixture
def small(tmp_path):
    """A small edited model with its patch, twice edited."""
    model = saved_llama(tmp_path / "in" / "base")
    save_edited(model, plan_for(model, "model.layers.0.mlp.up_proj.weight"), tmp_path / "in" / "a")
    edited = sonde.load(str(tmp_path / "in" / "a"))
    save_edited(edited, plan_for(edited, "model.norm.weight"), tmp_path / "in" / "new")
    return tmp_path


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/../../out", "..\\out", "c:/out", "."])
def test_a_patch_names_no_file_outside(small, name):
    patch = small / "in" / "new.patch"
    told = json.loads((patch / "patch.json").read_text())
    for key in ("before", "after"):
        sealed(patch, {**told, key: {**told[key], name: told["before"]["config.json"]}})
        before = sorted(small.rglob("*"))
        with pytest.raises(StoreError, match=f"{key!r} is missing or has a wrong type"):
            undo(small / "in" / "new", small / "old")
        assert sorted(small.rglob("*")) == before


@pytest.mark.slow
def test_any_change_of_a_patch_is_refused_before_anything_is_written(small):
    new, patch = small / "in" / "new", small / "in" / "new.patch"
    text = (patch / "patch.json").read_bytes()
    draw = random.Random(0)
    for at in draw.sample(range(len(text)), 30):
        (patch / "patch.json").write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        with pytest.raises((StoreError, InputError)):
            undo(new, small / "old")
    told, known = json.loads(text), hashes(small / "in" / "a").items()
    for place in places_in(told):
        for wrong in (*draw.sample(WRONG, 2), places_in):
            changed = copy.deepcopy(told)
            inner = functools.reduce(operator.getitem, place[:-1], changed)
            if wrong is places_in:
                del inner[place[-1]]
            else:
                inner[place[-1]] = wrong
            sealed(patch, changed)
            try:
                undo(new, small / "old")
            except SondeError:
                assert not (small / "old").exists(), place
            else:  # what is said of the method, say, and the file comes back as it was
                assert hashes(small / "old").items() <= known, place
                shutil.rmtree(small / "old")
                shutil.rmtree(small / "old.patch")
    (patch / "patch.json").write_bytes(text)
    earlier = patch / "earlier" / "patch.json"
    earlier.write_text(earlier.read_text().replace('"method": "test"', '"method": "Test"'))
    with pytest.raises(StoreError, match="was changed after it was written"):
        undo(new, small / "old")
