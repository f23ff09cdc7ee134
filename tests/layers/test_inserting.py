"""Layers put into a model that exists: where they run, how they are saved and taken out."""

import copy
import io
import subprocess
import sys
from shutil import rmtree
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde.core import InputError, Model, ShapeError, SiteError, StateError, StoreError
from sonde.layers import (
    Adapter,
    Attention,
    Blocks,
    Layer,
    ParallelAdapters,
    VectorQuantizer,
    inserted_layers,
    load_layers,
    save_layers,
    saving,
)
from sonde.testing.edit_laws import language_model, prompts

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


class Twice(nn.Module):
    """A block that runs twice, then a list of which each member runs once."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.many = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        x = self.block(self.block(x))
        for one in self.many:
            x = x + torch.relu(one(x))
        return x


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Twice()


def adapter(moved=True) -> Adapter:
    torch.manual_seed(7)
    made = Adapter(4, 3)
    if moved:
        nn.init.normal_(made.up.weight)
    return made


def written(net, site, layer):
    """The model's forward with the layer written into it by hand."""
    x = X
    for _ in range(2):
        x = torch.tanh(net.block[0](x) if site != "block.0" else layer(net.block[0](x)))
        x = layer(x) if site in ("block", "block.1") else x
    for i, one in enumerate(net.many):
        y = one(x)
        x = x + torch.relu(layer(y) if site == f"many.{i}" else y)
    return layer(x) if site == "" else x


@pytest.mark.parametrize("site", ["block.0", "block.1", "block", "many.1", ""])
@pytest.mark.truth("the layer written into the forward by hand")
def test_a_layer_runs_behind_its_site(net, site):
    before = {k: x.clone() for k, x in net.state_dict().items()}
    plain, layer = net(X), adapter()
    new = sonde.inserted(net, {site: layer})
    wanted = written(net, site, layer)
    assert not torch.equal(wanted, plain)
    for one in (new, copy.deepcopy(new)):
        assert torch.equal(one(X), wanted)
    assert torch.equal(net(X), plain)
    assert torch.equal(sonde.removed(new)(X), plain)
    assert torch.equal(sonde.inserted(net, {site: adapter(moved=False)})(X), plain)
    state = new.state_dict()
    assert [k for k in state if "inserted" not in k] == list(before)
    assert sum("inserted" in k for k in state) == 4
    assert all(state[k].data_ptr() == x.data_ptr() for k, x in net.state_dict().items())
    assert inserted_layers(new) == {site: layer}


def test_a_deepcopy_calls_its_own_layer_and_an_optimiser_trains_it(net):
    new = sonde.inserted(net, {"block": adapter()})
    twin, plain = copy.deepcopy(new), new(X).detach()
    layer: Any = next(iter(inserted_layers(twin).values()))
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    twin(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(twin(X), plain)
    assert torch.equal(new(X), plain)
    with torch.no_grad():
        layer.up.weight.zero_()
        layer.up.bias.zero_()
    torch.testing.assert_close(twin(X), sonde.removed(twin)(X), rtol=0, atol=0)


@pytest.mark.parametrize("site", ["0", "1", ""])
def test_a_sequential_as_root(site):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)))
    layer = adapter()
    new = sonde.inserted(net, {site: layer})
    inside = layer(net[0](X)) if site == "0" else net[0](X)
    wanted = net[1](inside) if site == "0" else layer(net[1](inside))
    for one in (new, copy.deepcopy(new)):
        assert torch.equal(one(X), wanted)
        assert len(list(one.children())) == 2


COMPILED = """
import torch, sonde
from torch import nn
torch.manual_seed(0)  # a layer that is drawn can leave the output as it was
net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)))
x = torch.randn(5, 4)
for site in ("0", "1", ""):
    layer = sonde.layers.Adapter(4, 3)
    nn.init.normal_(layer.up.weight)
    new = sonde.inserted(net, {site: layer})
    assert not torch.equal(new(x), net(x))
    assert torch.equal(torch.compile(new, backend="eager", fullgraph=True)(x), new(x))
"""


@pytest.mark.slow
def test_a_model_with_layers_compiles_to_one_graph():
    """In a process of its own: the checker of shapes under pytest breaks graphs."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_a_language_model_keeps_its_bits_and_its_mask_reaches_the_layer():
    model, (ids, mask) = language_model(), prompts()
    plain = model(ids, attention_mask=mask.long()).logits

    class Sees(Layer):
        layout = ("row token dim",)

        def forward(self, x, mask=None):
            self.seen = mask
            return x

    sees = Sees()
    wrapped = Model(model, name="tiny")
    new = sonde.inserted(wrapped, {"h.0": adapter(moved=False), "h.1": sees})
    assert torch.equal(new.module(ids, attention_mask=mask.long()).logits, plain)
    assert new.name == "tiny"
    assert torch.equal(sees.seen, mask)
    layer: Any = inserted_layers(new)["transformer.h.0"]
    assert layer.up.weight.dtype == torch.float64
    known: dict[str, Any] = {"attention_mask": mask.long(), "max_new_tokens": 3, "do_sample": False}
    with pytest.raises(InputError, match=r"Sees: .*use_cache=False"):
        new.module.generate(ids, use_cache=True, **known)
    again = new.module.generate(ids, **known)
    assert torch.equal(again, model.generate(ids, **known))
    before: Any = sonde.removed(new).module.generation_config
    assert before.use_cache


def test_layers_are_saved_alone_and_with_the_model(net, tmp_path):
    new = sonde.inserted(net, {"block": adapter(), "many.0": Adapter(4, 2)})
    looks = Attention(4, 2, Blocks((3, 2)), grid=(2, 3))
    (kept,) = load_layers(
        save_layers(sonde.inserted(nn.Sequential(nn.Tanh()), {"": looks}), tmp_path / "looks")
    ).values()
    assert isinstance(kept, Attention)
    assert str(kept.pattern) == "block:3,2"
    assert kept.grid == (2, 3)
    rmtree(tmp_path / "looks.layers")
    folder = save_layers(new, tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.layers"]
    again = sonde.inserted(net, load_layers(folder))
    assert torch.equal(again(X), new(X))
    fresh = sonde.inserted(Twice(), {"block": Adapter(4, 3), "many.0": Adapter(4, 2)})
    fresh.load_state_dict(new.state_dict())
    file = io.BytesIO()
    torch.save(new, file)
    file.seek(0)
    for one in (fresh, torch.load(file, weights_only=False)):
        assert torch.equal(one(X), new(X))
    whole = (folder / "layers.safetensors").read_bytes()
    (folder / "layers.safetensors").write_bytes(whole[:-9])
    with pytest.raises(StateError, match=r"mine\.layers is damaged"):
        load_layers(folder)
    with pytest.raises(StoreError, match=r"no layers in .*other"):
        load_layers(tmp_path / "other")
    with pytest.raises(
        InputError, match="with inserted layers, got a model without inserted layers"
    ):
        save_layers(net, tmp_path / "mine")


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_of_tensors_in_a_file_does_not_matter(tmp_path, monkeypatch, backwards):
    looks = Attention(4, 2, Blocks((3, 2)), grid=(2, 3)).bfloat16()
    assert {x.dtype for x in looks.state_dict().values()} == {torch.bfloat16, torch.int64}
    folder = save_layers(sonde.inserted(nn.Sequential(nn.Tanh()), {"": looks}), tmp_path / "a")
    real = saving.from_safetensors

    def sorted_by_type(content):
        found = real(content).items()
        return dict(sorted(found, key=lambda item: str(item[1].dtype), reverse=backwards))

    monkeypatch.setattr(saving, "from_safetensors", sorted_by_type)
    (kept,) = load_layers(folder).values()
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ({}, InputError, "at least one layer"),
        ({"many": Adapter(4, 2)}, SiteError, "many is a list of modules, which is never called"),
        ({"tail": Adapter(4, 2)}, SiteError, "expected a module, got 'tail'"),
        ({"attention.out_proj": Adapter(4, 2)}, SiteError, "kernel of attention .* never calls it"),
        ({"one": Adapter(4, 2)}, SiteError, "one and two are the same module"),
        ({"block:in": Adapter(4, 2)}, SiteError, "path of one module, got 'block:in'"),
        ({"block": ParallelAdapters(nn.Linear(4, 4), 4)}, InputError, "starts as the identity"),
    ],
)
def test_what_cannot_be_inserted_leaves_the_model_as_it_was(net, layers, error, message):
    net.one = net.two = nn.Linear(4, 4)
    net.attention = nn.MultiheadAttention(4, 2)
    before = net.state_dict().keys()
    with pytest.raises(error, match=message):
        sonde.inserted(net, layers)
    assert net.state_dict().keys() == before
    assert not any(m._forward_hooks for m in net.modules())


def test_twice_inserted_twice_removed_and_a_changed_model(net):
    layer = adapter()
    new = sonde.inserted(net, {"block": layer})
    with pytest.raises(InputError, match="a layer at block is already inserted"):
        sonde.inserted(new, {"block": Adapter(4, 2)})
    with pytest.raises(InputError, match="this Adapter is already inserted"):
        sonde.inserted(net, {"block": layer, "many.0": layer})
    more = sonde.inserted(new, {"many.0": Adapter(4, 2)})
    assert list(inserted_layers(more)) == ["block", "many.0"]
    with pytest.raises(InputError, match=r"removed: .* got a model without inserted layers"):
        sonde.removed(sonde.removed(more))
    wide = sonde.inserted(net, {"block": Adapter(6, 2)})
    with pytest.raises(ShapeError, match=r"expected states \(\*axes dim=6\), got \(5, 4\)"):
        wide(X)
    del more.many[0].inserted
    with pytest.raises(StateError, match=r"many.0 has lost its layer or its hook"):
        sonde.removed(more)
    new.block._forward_hooks.clear()
    with pytest.raises(StateError, match=r"inserted_block has lost its layer or its hook"):
        sonde.removed(new)


@pytest.mark.truth("the mixture by hand")
def test_a_layer_is_an_edit(net):
    layer = adapter()
    full = sonde.inserted(net, {"many.0": layer})(X)
    with sonde.editing(net, layer.as_edit(), "many.0"):
        assert torch.equal(net(X), full)
    with sonde.editing(net, layer.as_edit(0.3), "many.0"):
        found = net(X)
    y = net.block(net.block(X))
    y = y + torch.relu(net.many[0](y) + 0.3 * layer.change(net.many[0](y)))
    torch.testing.assert_close(found, y + torch.relu(net.many[1](y)))
    with pytest.raises(InputError, match=r"ParallelAdapters\.as_edit"):
        ParallelAdapters(nn.Linear(4, 4), 4).as_edit()


def test_a_layer_that_was_changed_after_it_was_made_is_saved_as_it_is(tmp_path):
    centres = torch.tensor([[0.0, 1.0], [-1.0, 0.5]])
    made = {
        "0": VectorQuantizer(4, 5, strength=0.0),
        "1": Attention(4, 2, Blocks((4,))),
        "2": Attention(4, 2, prior="position", grid=(2, 3), centres=centres),
    }
    new = sonde.inserted(nn.Sequential(nn.Tanh(), nn.ReLU(), nn.GELU()), made)
    own, x = inserted_layers(new), torch.randn(2, 6, 4)
    own["0"].strength = 0.7
    before = torch.get_rng_state()
    folder = save_layers(new, tmp_path / "mine")
    assert torch.equal(torch.get_rng_state(), before)
    back = load_layers(folder)
    for site, layer in own.items():
        assert torch.equal(back[site](x), layer(x))
    assert back["0"].strength == 0.7
    assert back["1"].pattern == Blocks((4,))
    own["0"].given["seed"] = object()
    with pytest.raises(
        InputError, match=r"argument that cannot be written to JSON \(seed: object\)"
    ):
        save_layers(new, tmp_path / "mine")
