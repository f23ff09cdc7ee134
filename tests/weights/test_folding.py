"""Edits written into weights: the folded model is the hooked one, or the fold is refused."""

import copy
import json
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import models
import sonde
from sonde.core.edit import Add, AffineMap, Clamp, Edit, Project, Scale
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.tap import editing
from sonde.tap.hooks.outputs import find
from sonde.tap.model.sites import resolve
from sonde.weights import fold_edit, fold_writers, residual_writers
from sonde.weights._layer import Layer
from sonde.weights.change import Exchange
from sonde.weights.residual import example_inputs


@dataclass(frozen=True, eq=False)
class Affine(Edit):
    """Scale, a part of low rank and a shift at once."""

    affine: AffineMap

    def apply(self, x, site, context):
        return self.affine(x)

    def as_affine(self):
        return self.affine


def every(dim):
    left, right, shift = (torch.randn(*s) for s in ((dim, 2), (dim, 2), (dim,)))
    linear = AffineMap(left=left, right=right)
    return [
        Add(shift, 0.5),
        Project(shift),
        Scale(0.7),
        Affine(linear),
        Affine(AffineMap(shift, left, right, 1.3)),
    ]


def assert_same(hooked, folded):
    worst = (hooked - folded).abs().max().item()
    assert worst <= 1e-5 * hooked.abs().max().item(), worst


def logits(model, inputs):
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, torch.Tensor) else found[0]


PLACES = {
    "linear out": (lambda: models.mlp(), "2", 16),
    "linear in": (lambda: models.mlp(), "2:in", 16),
    "kernel out": (lambda: models.cnn(), "conv1", 8),
    "transposed out": (lambda: models.gpt2(), "transformer.h.1.mlp.c_proj", 32),
    "transposed in": (lambda: models.gpt2(), "transformer.h.1.mlp.c_proj:in", 128),
    "embedding": (lambda: models.gpt2(), "transformer.wte", 32),
    "head in, tied": (lambda: models.gpt2(), "lm_head:in", 32),
    "whole MLP": (lambda: models.gpt2(), "transformer.h.1.mlp", 32),
}


@pytest.mark.parametrize("place", PLACES)
def test_folded_is_hooked(place):
    build, site, dim = PLACES[place]
    model = build().eval()
    inputs = torch.randn(3, 8) if "linear" in place else torch.randn(2, 1, 8, 8)
    inputs = example_inputs(model) if hasattr(model, "config") else inputs
    before = logits(model, inputs)
    for edit in every(dim):
        has_shift = edit.as_affine().shift is not None
        if place == "head in, tied" and has_shift:
            with pytest.raises(StateError, match="no bias, which this edit needs"):
                fold_edit(model, edit, site)
            continue
        new = fold_edit(model, edit, site).fold(model)
        with editing(model, edit, site):
            hooked = logits(model, inputs)
        assert_same(hooked, logits(new, inputs))
        assert (hooked - before).abs().max() > 1e-3
        assert torch.equal(before, logits(model, inputs))


def test_the_input_of_a_kernel():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    x = torch.randn(2, 1, 8, 8)
    for edit in every(6):
        folded = fold_edit(net, edit, "2:in").fold(net)
        with editing(net, edit, "2:in"):
            assert_same(logits(net, x), logits(folded, x))
    padded = nn.Conv2d(6, 4, 3, padding=1)
    with pytest.raises(StateError, match="pads its input with zeros"):
        fold_edit(nn.Sequential(padded), Add(torch.ones(6)), "0:in")


@pytest.mark.parametrize("port", ["in", "out"])
@pytest.mark.truth("the hooked layer")
def test_a_map_that_mixes_groups_of_a_kernel_does_not_fold(port):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(6, 6, 3, groups=3)), torch.randn(2, 6, 5, 5)
    for edit in every(6):
        affine = edit.as_affine()
        if affine.left is None and (affine.shift is None or port == "out"):
            folded = fold_edit(net, edit, f"0:{port}").fold(net)
            with editing(net, edit, f"0:{port}"):
                assert_same(logits(net, x), logits(folded, x))
        else:
            with pytest.raises(StateError, match="each group"):
                fold_edit(net, edit, f"0:{port}")


def test_every_folded_layer_is_compared_with_the_edited_one(monkeypatch):
    net = models.mlp()
    monkeypatch.setattr(Layer, "after", lambda self, _: {self.bias: Exchange(torch.ones(16))})
    with pytest.raises(StateError, match="differs from the edited layer by"):
        fold_edit(net, Add(torch.randn(16)), "2")


class FarFromZero(Edit):
    """A small part of low rank, computed from rows that were moved far away: digits are lost."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.left, self.right = torch.randn(2, 16, 1)

    def apply(self, x: torch.Tensor, site: Any, context: Any) -> torch.Tensor:
        left, right = self.left.to(x), self.right.to(x)
        return x + ((x + 1e4) @ right - 1e4 * right.sum(0)) @ left.T

    def as_affine(self) -> AffineMap:
        return AffineMap(left=self.left, right=self.right)


def test_an_edit_that_loses_digits_in_single_precision_folds_by_double():
    net, x = models.mlp(), torch.randn(9, 8)
    edit = FarFromZero()
    folded = fold_edit(net, edit, "2", inputs=x).fold(net)
    with torch.no_grad():
        with editing(net, edit, "2"):
            rough = net(x)
        assert (folded(x) - rough).abs().max() > 1e-5 * rough.abs().max()
        exact = copy.deepcopy(net).double()
        with editing(exact, edit, "2"):
            wanted = exact(x.double())
        torch.testing.assert_close(folded(x).double(), wanted, atol=1e-5, rtol=1e-5)


def _doubled(module, args, output):
    return 2 * output


def _own_forward(net):
    net[2].forward = lambda x: 2 * nn.Linear.forward(net[2], x)


@pytest.mark.parametrize("site", ["2", "2:in"])
@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[2].register_forward_hook(_doubled),
        lambda net: net[2].register_forward_pre_hook(lambda _, args: (2 * args[0],)),
        _own_forward,
    ],
)
def test_a_layer_under_hooks_of_the_user_does_not_fold(change, site):
    net = models.mlp()
    change(net)
    with pytest.raises(StateError, match="Remove this code, or open the edit"):
        fold_edit(net, Project(torch.randn(16)), site)


def test_writers_under_hooks_of_the_user_do_not_fold():
    model = models.llama()
    model.model.layers[1].mlp.down_proj.register_forward_hook(_doubled)
    for fold in (fold_writers, lambda m, e: fold_edit(m, e, "model.layers.1.mlp")):
        with pytest.raises(StateError, match="Remove this code"):
            fold(model, Project(torch.randn(32)))


def test_a_shift_behind_a_block_makes_the_bias_that_the_architecture_can_have(tmp_path):
    models.llama().save_pretrained(tmp_path / "llama")
    model = sonde.load(str(tmp_path / "llama"))
    inputs, edit = example_inputs(model.module), Add(torch.randn(32))
    plan = fold_edit(model, edit, "model.layers.1")
    with editing(model, edit, "model.layers.1"):
        hooked = logits(model.module, inputs)
    assert_same(hooked, logits(plan.fold(model), inputs))
    saved = plan.save(model, tmp_path / "new")
    assert json.loads((saved.folder / "config.json").read_text())["mlp_bias"] is True
    loaded = sonde.load(str(saved.folder)).module
    assert_same(hooked, logits(loaded, inputs))
    sonde.undo(saved.folder, tmp_path / "old")
    old = (tmp_path / "llama" / "config.json").read_bytes()
    assert (tmp_path / "old" / "config.json").read_bytes() == old


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba", "opt", "vit"])
@pytest.mark.truth("the direction is absent from the hooked residual stream")
def test_a_direction_leaves_the_whole_stream(name):
    model = getattr(models, name)()
    direction = torch.randn(32)
    writers = residual_writers(model)
    plan = fold_writers(model, Project(direction))
    folded, inputs = plan.fold(model), example_inputs(model)
    before, after = ([], [])
    for one, seen in ((model, before), (folded, after)):
        streams = []
        for site in resolve(one, "blocks"):
            hook = lambda m, a, out, to=streams: to.append(find(out, None))  # noqa: E731
            one.get_submodule(site.path).register_forward_hook(hook)
        logits(one, inputs)
        seen += [(x.double() @ direction.double()).abs().max() for x in streams]
    assert max(after) < 1e-4 < min(before)
    layers = [w.name for w in writers if not isinstance(w, str)]
    if len(layers) == len(writers):
        with editing(model, Project(direction), layers):
            hooked = logits(model, inputs)
        assert_same(hooked, logits(folded, inputs))


def test_writers_of_a_small_transformer():
    writers = [w.name for w in residual_writers(models.llama()) if not isinstance(w, str)]
    blocks = [
        f"model.layers.{i}.{w}" for i in range(3) for w in ("self_attn.o_proj", "mlp.down_proj")
    ]
    assert writers == ["model.embed_tokens", *blocks]


def test_what_does_not_fold_says_why():
    gpt2, llama = models.gpt2(), models.llama()
    ones = torch.ones(32)
    with pytest.raises(StateError, match="Clamp is not an affine map"):
        fold_edit(gpt2, Clamp(0.0), "transformer.wte")
    with pytest.raises(StateError, match="where='last'"):
        fold_edit(gpt2, Add(ones), "transformer.wte", where="last")
    with pytest.raises(StateError, match="fold_writers"):
        fold_edit(gpt2, Project(ones), "transformer.h.1")
    with pytest.raises(StateError, match="LayerNorm"):
        fold_edit(gpt2, Project(ones), "transformer.h.1.ln_1")
    with pytest.raises(StateError, match="with a bias"):
        fold_writers(gpt2, Add(ones))
    with pytest.raises(ShapeError, match=r"32 features at .*wte, got an edit of 5"):
        fold_edit(gpt2, Add(torch.ones(5)), "transformer.wte")
    with pytest.raises(StateError, match=r"LayerNorm.*stands there"):
        residual_writers(models.bert())
    with pytest.raises(StateError, match="no option for a bias"):
        fold_edit(models.qwen2(), Add(ones), "model.layers.0.self_attn.o_proj")
    with pytest.raises(InputError, match="changed twice"):
        fold_edit(llama, Project(ones), ["model.layers.0.mlp", "model.layers.0.mlp.down_proj"])
    with pytest.raises(InputError, match="Pass inputs"):
        residual_writers(models.resnet18())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised: Any = torch.ao.quantization.quantize_dynamic(models.mlp(), {nn.Linear})
    with pytest.raises(StateError, match="not a plain linear layer"):
        fold_edit(quantised, Project(torch.ones(8)), "0:in")


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Placed(nn.Module):
    """Adds positions, kept in a buffer, to the embeddings."""

    def __init__(self, persistent):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(9, 6), nn.ModuleList([Step(), Step()])
        self.places: torch.Tensor
        self.register_buffer("places", torch.randn(7, 6), persistent=persistent)

    def forward(self, x):
        stream = self.embed(x) + self.places[: x.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return stream


@pytest.mark.truth("the direction as a projection of the stream itself")
def test_a_fold_reaches_positions_in_a_buffer_or_is_refused():
    torch.manual_seed(4)
    net, unsaved = Placed(True).eval(), Placed(False).eval()
    x, direction = torch.randint(9, (3, 5)), torch.randn(6)
    names = [w if isinstance(w, str) else w.name for w in residual_writers(net, x)]
    assert names == ["places", "embed", "blocks.0.down", "blocks.1.down"]
    unit, folded = direction / direction.norm(), fold_writers(net, Project(direction), x).fold(net)
    with torch.no_grad():
        assert (net(x) @ unit).abs().max() > 0.1
        assert (folded(x) @ unit).abs().max() < 1e-5
    with pytest.raises(StateError, match="also contains places, which is not saved"):
        residual_writers(unsaved, x)
