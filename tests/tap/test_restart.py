"""A model run on from a site: the bits of a whole forward with the states replaced."""

from collections import Counter
from collections.abc import Mapping
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import albert, gpt2, llama, lstm, mamba, resnet18, t5, vit
from sonde.core.edit import Add, Replace
from sonde.core.errors import ShapeError, SiteError
from sonde.tap import Tap, cache_of, editing, record_forward
from tap_snapshot import assert_unchanged, snapshot

IDS = torch.tensor([[1, 5, 6, 7], [1, 9, 8, 3]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
PIXELS = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "attention_mask": MASK}


class Loop(nn.Module):
    """One cell called at every step; the residual is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = nn.GRUCell(6, 6), nn.LayerNorm(6)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
            kept = self.norm(h)
            self.act(kept)  # what it returns is not used
            h += kept
        return self.head(h)


def loop() -> Loop:
    torch.manual_seed(0)
    return Loop().eval()


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (gpt2, TEXT),
    "llama": (llama, TEXT),
    "albert": (albert, TEXT),
    "t5": (t5, TEXT | {"decoder_input_ids": IDS[:, :3]}),
    "mamba": (mamba, TEXT),
    "vit": (vit, {"pixel_values": PIXELS}),
    "resnet": (lambda: resnet18(width=4), {"x": PIXELS}),
    "lstm": (lstm, {"input_ids": IDS}),
    "loop": (loop, {"x": X[..., :6]}),
    "encoder": (encoder, {"src": X}),
}


def tensors(output: Any) -> list[Tensor]:
    """Return the tensors of an output, those of caches apart."""
    found = output.values() if isinstance(output, Mapping) else [output]
    return [x for x in found if isinstance(x, Tensor)]


def replaced_by_hook(net: Any, path: str, call: int, value: Tensor, given: dict[str, Any]) -> Any:
    """Return the output of a whole forward in which one call of a module returns other states."""
    calls = []

    def hook(module: Any, args: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) - 1 != call:
            return None
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = net.get_submodule(path).register_forward_hook(hook)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernels round otherwise
    try:
        with torch.no_grad():
            return net(**given)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        handle.remove()


@pytest.mark.slow
@pytest.mark.truth("a whole forward with a hook that replaces the output")
@pytest.mark.parametrize("name", MODELS)
def test_every_site_gives_the_bits_of_a_whole_forward(name):
    build, given = MODELS[name]
    net = build()
    given = given | (
        {"use_cache": False} if "use_cache" in signature(net.forward).parameters else {}
    )
    before = snapshot(net)
    run = record_forward(net, **given)
    paths = {id(m): n for n, m in net.named_modules()}
    seen: Counter[str] = Counter()
    n_sites = 0
    for call in run._calls[1:]:
        path = paths[id(call.module)]
        index, seen[path] = seen[path], seen[path] + 1
        output = call.output[0] if isinstance(call.output, tuple) else call.output
        if not isinstance(output, Tensor) or not output.is_floating_point() or len(output) != 2:
            continue
        value = 1.25 * output.flip(0) + 0.1
        expected = replaced_by_hook(net, path, index, value.clone(), given)
        with torch.no_grad():
            found = run.from_site(f"{path}@{index}", value)
        for a, b in zip(tensors(expected), tensors(found), strict=True):
            assert torch.equal(a, b), f"{path}@{index}"
        n_sites += 1
    assert not run.whole_because
    assert n_sites >= len(list(net.children()))
    assert_unchanged(before, net)


def test_modules_before_the_site_do_not_run_again():
    net, ran = gpt2(), []
    run = record_forward(net, IDS)
    for name in ("transformer.wte", "transformer.h.0.attn", "transformer.h.1.mlp.c_fc"):
        net.get_submodule(name).register_forward_pre_hook(lambda m, a: ran.append(m))
    run.from_site("transformer.h.1", run.states("transformer.h.1")["transformer.h.1:out"])
    assert not [m for m in ran if m is not net.transformer.wte]
    run.from_site("transformer.h.0", run.states("transformer.h.0")["transformer.h.0:out"])
    assert ran[-1] is net.transformer.h[1].mlp.c_fc


@pytest.mark.truth("a whole forward on the examples one after another")
@pytest.mark.parametrize("name", ["gpt2", "t5", "vit", "lstm", "loop", "encoder"])
@pytest.mark.parametrize("n", [1, 2])
def test_states_of_several_runs_go_on_as_one_batch(name, n):
    build, given = MODELS[name]
    net = build()
    given = {key: x[:n] for key, x in given.items()}
    paths = {"gpt2": "transformer.h.1", "t5": "decoder.block.1", "vit": "layers.1"}
    paths |= {"lstm": "lstm", "loop": "cell@3", "encoder": "layers.0"}
    run = record_forward(net, **given)
    value = torch.cat([k * run.states(paths[name]).popitem()[1] for k in (1, 2, -1)])
    with torch.no_grad():
        found = tensors(run.from_site(paths[name], value))[0]
    for k, part in enumerate(value.split(n)):
        with torch.no_grad():
            alone = tensors(run.from_site(paths[name], part))[0]
        assert torch.allclose(found[k * n : (k + 1) * n], alone, atol=1e-5)


@pytest.mark.truth("the gradient of a whole forward under an edit")
def test_gradients_reach_the_states():
    net = gpt2()
    run = record_forward(net, IDS)
    site, states = run.states("h.1").popitem()
    value = (1.1 * states).requires_grad_()
    run.from_site(site, value).logits[:, -1, 3].sum().backward()
    other = (1.1 * states).requires_grad_()
    with editing(net, Replace(other), site):
        net(IDS).logits[:, -1, 3].sum().backward()
    assert value.grad is not None
    assert other.grad is not None
    assert torch.equal(value.grad, other.grad)


def test_what_cannot_be_skipped_is_a_whole_forward():
    net = gpt2()
    direction = torch.ones(32)
    site = "transformer.h.1:out"
    cached = record_forward(net, IDS, use_cache=True)
    assert cached.whole_because == "a key-value cache is in use"
    value = 2 * cached.states(site)[site]
    plain = record_forward(net, IDS)
    with torch.no_grad():
        expected = plain.from_site(site, value).logits
        for _ in range(2):
            out = cached.from_site(site, value)
            assert torch.equal(out.logits, expected)
            assert cache_of(out).get_seq_length() == 4
        with editing(net, Add(direction), "h.0.attn"):
            inside = plain.from_site("h.0.mlp", plain.states("h.0.mlp").popitem()[1]).logits
        with editing(net, Add(direction), "h.0.attn"):
            with_edit = record_forward(net, IDS)
            mlp = plain.states("h.0.mlp").popitem()[1]
            assert torch.equal(with_edit.from_site("h.0.mlp", mlp).logits, inside)
    assert not torch.equal(inside, plain.output.logits)
    net.train()
    assert record_forward(net, IDS).whole_because == "the model is in training mode"


class Branches(nn.Module):
    """Takes another way where the states are negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.one(self.two(h)) if bool(h.sum() > 0) else self.two(self.one(h))


def test_a_model_that_turns_another_way_is_followed():
    net = Branches().eval()
    x = torch.randn(2, 3)
    run = record_forward(net, x)
    for sign in (1, -1):
        value = sign * torch.ones(2, 3)
        with torch.no_grad():
            h = net.one(net.two(value)) if sign > 0 else net.two(net.one(value))
            assert torch.equal(run.from_site("first", value), h)


def test_inputs_of_a_module_can_be_replaced_and_errors_are_said():
    net = gpt2()
    run = record_forward(net, IDS)
    with Tap(net, "h.1.mlp:in") as tap, torch.no_grad():
        net(IDS)
    value = 2 * tap.rows["transformer.h.1.mlp:in"]
    with torch.no_grad(), editing(net, Replace(value), "h.1.mlp:in"):
        expected = net(IDS).logits
    with torch.no_grad():
        assert torch.equal(run.from_site("h.1.mlp:in", value).logits, expected)
    with pytest.raises(ShapeError, match="expected 2 examples or a multiple, got 3 at"):
        run.from_site("h.1", torch.zeros(3, 4, 32))
    with pytest.raises(ShapeError, match=r"shape \(2, 4, 32\), got \(2, 4, 31\) at transformer"):
        run.from_site("h.1", torch.zeros(2, 4, 31))
    with pytest.raises(SiteError, match="expected one site with port out or in"):
        run.from_site("blocks", torch.zeros(2, 4, 32))
    with pytest.raises(SiteError, match=r"got transformer\.h\.1@2:out, .* ran 1 time .* below @1"):
        run.from_site("h.1@2", torch.zeros(2, 4, 32))
    with pytest.raises(SiteError, match=r"'cell' ran 5 times\. Write cell@0"):
        record_forward(loop(), X[..., :6]).from_site("cell", torch.zeros(2, 6))
