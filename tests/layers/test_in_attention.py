"""A second source inside attentions of existing models: sums by hand, files, copies, errors."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import sonde
from attention_models import EVERY, inputs_of
from sonde.core import InputError, ShapeError, SiteError
from sonde.layers import (
    DecoupledCrossAttention,
    conditioned,
    inserted_layers,
    load_layers,
    save_layers,
)

DIM, HEADS = 6, 4


class Plain(nn.Module):
    """An attention that calls torch's fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        made = self.query(x), self.key(other), self.value(other)
        parts = (one.unflatten(-1, (HEADS, 8)).transpose(1, 2) for one in made)
        return self.out(scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(width: int = 8, scale: float = 1.0) -> DecoupledCrossAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return DecoupledCrossAttention(DIM, HEADS, width, scale)


def added_by_hand(
    queries: torch.Tensor, own: DecoupledCrossAttention, source: torch.Tensor
) -> torch.Tensor:
    """Return heads side by side, example by example, head by head, query by query."""
    found = torch.zeros_like(queries)
    for i in range(len(queries)):
        keys, values = source[i] @ own.key.weight.T, source[i] @ own.value.weight.T
        for h in range(HEADS):
            part = slice(h * own.width, (h + 1) * own.width)
            for t in range(queries.shape[1]):
                scores = keys[:, part] @ queries[i, t, part] / own.width**0.5
                found[i, t, part] = scores.softmax(0) @ values[:, part]
    return found


def projections(part: Any) -> tuple[Any, Any]:
    """Return the map of queries and the weight of the output of an attention."""
    if isinstance(part, nn.MultiheadAttention):
        weight, bias = part.in_proj_weight[:32], part.in_proj_bias[:32]
        return (lambda x: x @ weight.T + bias), part.out_proj.weight
    names = (("q_proj", "out_proj"), ("q", "o"), ("query", "out"))
    query, out = next(pair for pair in names if hasattr(part, pair[0]))
    return getattr(part, query), getattr(part, out).weight


def multihead(batch_first: bool) -> Any:
    return nn.MultiheadAttention(32, HEADS, batch_first=batch_first)


NETS: dict[str, tuple[Any, str]] = {
    "torch": (lambda: multihead(True), ""),
    "torch, time first": (lambda: multihead(False), ""),
    "plain": (Plain, ""),
    "bart": (EVERY["bart"], "model.decoder.layers.1.encoder_attn"),
    "bart, its own text": (EVERY["bart"], "model.decoder.layers.0.self_attn"),
    "t5": (EVERY["t5"], "decoder.block.1.layer.1.EncDecAttention"),
}


def called(name: str, net: nn.Module) -> Any:
    """Return the output of the attention, its queries' states, and whether time comes first."""
    if "torch" in name or name == "plain":
        x, other = rows(0, 2, 5, 32), rows(1, 2, 7, 32)
        if "first" in name:
            x, other = x.transpose(0, 1), other.transpose(0, 1)
        return net(x, other) if name == "plain" else net(x, other, other)[0]
    return net(**inputs_of(name.partition(",")[0], net, False))[0]


@pytest.mark.truth("a loop over examples, heads and queries; the model as it is at scale 0")
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_an_attention_of_a_model_adds_a_second_source(name):
    make, path = NETS[name]
    torch.manual_seed(3)
    net = make().eval()
    seen: list[Any] = []
    part = net.get_submodule(path)
    query, out = projections(part)
    own = layer(out.shape[1] // HEADS, scale=1.0)
    source = rows(2, 2, 3, DIM)
    plain = called(name, net)

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        seen.append((x, output if isinstance(output, torch.Tensor) else output[0]))

    new = sonde.inserted(net, {path: own})
    handle = new.get_submodule(path).register_forward_hook(keep, with_kwargs=True)
    assert torch.equal(called(name, new), plain)
    with conditioned(new, source):
        moved = called(name, new)
        own.scale = 0.0
        assert torch.equal(called(name, new), plain)
        own.scale = 0.6
        less = called(name, new)
    assert torch.equal(called(name, new), plain)
    assert not torch.allclose(moved, plain, atol=1e-4)
    first = (lambda x: x.transpose(0, 1)) if "first" in name else (lambda x: x)
    for scale, (x, output), before in ((1.0, seen[1], seen[0]), (0.6, seen[3], seen[0])):
        x, output = first(x), first(output)
        wanted = first(before[1]) + scale * added_by_hand(query(x), own, source) @ out.T
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(less, moved, atol=1e-4)
    handle.remove()
    assert torch.equal(called(name, net), plain)
    assert torch.equal(called(name, sonde.removed(new)), plain)
    with conditioned(new, source):
        again = called(name, new)
    for other in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        with conditioned(other, source):
            torch.testing.assert_close(called(name, other), again)


def test_the_new_keys_and_values_alone_are_trained_and_saved(tmp_path):
    net: Any = EVERY["bart"]().eval().requires_grad_(False)
    paths = [f"model.decoder.layers.{i}" for i in range(2)]
    new = sonde.inserted(net, {f"{path}.encoder_attn": layer() for path in paths})
    assert list(inserted_layers(new)) == [f"{path}.encoder_attn" for path in paths]
    trained = [n for n, p in new.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    assert f"{paths[0]}.encoder_attn.inserted.key.weight" in trained
    given = inputs_of("bart", new, True)
    source = rows(2, 1, 3, DIM)
    with conditioned(new, source):
        new(**given).logits.square().mean().backward()
        wanted = new(**given).logits
    for one in inserted_layers(new).values():
        assert float(one.key.weight.grad.abs().sum()) > 0
        assert float(one.value.weight.grad.abs().sum()) > 0
    inserted_layers(new)[f"{paths[1]}.encoder_attn"].scale = 0.5
    folder = save_layers(new, tmp_path / "mine")
    again = sonde.inserted(net, load_layers(folder))
    with conditioned(again, source), conditioned(new, source):
        assert torch.equal(again(**given).logits, new(**given).logits)
        assert not torch.equal(again(**given).logits, wanted)
        ids = given["input_ids"]
        cached, plain = (
            again.generate(ids, max_new_tokens=5, do_sample=False, use_cache=cache)
            for cache in (True, False)
        )
    assert torch.equal(cached, plain)


def test_what_is_refused():
    net: Any = EVERY["bart"]().eval()
    with pytest.raises(SiteError, match="holds 2 attention layers"):
        sonde.inserted(net, {"model.decoder.layers.0": layer()})
    with pytest.raises(SiteError, match="expected an attention layer"):
        sonde.inserted(net, {"model.decoder.layers.0.fc1": layer()})
    path = "model.decoder.layers.0.encoder_attn"
    new = sonde.inserted(net, {path: layer()})
    with pytest.raises(InputError, match="is already inserted"):
        sonde.inserted(new, {path: layer()})
    given = inputs_of("bart", new, False)
    with (
        conditioned(new, rows(0, 3, 2, DIM)),
        pytest.raises(ShapeError, match=r"a source \(2 or 1, token, 6\)"),
    ):
        new(**given)
    plain = net(**given).logits
    assert torch.equal(new(**given).logits, plain), "the watch of the failed call stayed open"
    wrong = sonde.inserted(net, {path: layer(width=5)})
    with conditioned(wrong, rows(0, 2, 2, DIM)), pytest.raises(ShapeError, match="expected states"):
        wrong(**given)
