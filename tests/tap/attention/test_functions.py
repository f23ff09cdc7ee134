"""Attentions without an interface: torch's own functions are seen while the module runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_models import HEADS, PORTS, heads_of
from models import _IDS, _TEXT, _hf
from sonde.core.edit import Replace, Scale
from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.tap import Tap, editing, live_stream
from sonde.tap.attention.places import attentions_at
from sonde.tap.hooks.names import ModuleNames
from tap_inputs import Texts

SIZES = _TEXT | _IDS
SHOWN = ("values", "probs", "heads")
CLASSES = {
    "gptj": (
        _hf(
            "GPTJForCausalLM",
            "GPTJConfig",
            **SIZES,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            rotary_dim=4,
        ),
        SHOWN,
    ),
    "mpt": (
        _hf("MptForCausalLM", "MptConfig", **SIZES, d_model=32, n_layers=2, n_heads=4),
        SHOWN,
    ),
    "falcon": (
        _hf(
            "FalconForCausalLM",
            "FalconConfig",
            **SIZES,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        PORTS,
    ),
}


class Fused(nn.Module):
    """A causal attention as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(2, (HEADS, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, 2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def fused() -> nn.Sequential:
    """Return two of them."""
    torch.manual_seed(0)
    return nn.Sequential(Fused(), nn.ReLU(), Fused()).eval()


@pytest.mark.truth("probabilities times values, against the module's own product")
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_classes_of_transformers_without_the_interface(name):
    build, shown = CLASSES[name]
    model = build()
    ids, mask = torch.arange(3, 17).view(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    plain = model(ids, attention_mask=mask)[0]
    paths = attentions_at("", ModuleNames(model))
    assert len(paths) == 2
    with Tap(model, [f"{path}:{port}" for path in paths for port in shown]) as tap:
        assert torch.equal(model(ids, attention_mask=mask)[0], plain)
    for path in paths:
        ports = {port: tap.rows[f"{path}:{port}"] for port in shown}
        gap = (heads_of(ports) - ports["heads"])[mask.bool()].abs().max()
        assert gap <= 1e-5 * ports["heads"].abs().max()


def test_what_a_class_does_not_show_is_refused():
    model = Model(CLASSES["mpt"][0](), task="causal")
    with pytest.raises(SiteError, match=r"its queries could not be read"):
        _ = live_stream(model, Texts([[3, 4, 5]]), "blocks.1.attn:queries").schema
    with (
        pytest.raises(SiteError, match="a port that its kernel shows"),
        editing(model, Scale(2.0), "blocks.1.attn:keys"),
    ):
        model.module(torch.tensor([[3, 4]]))
    schema = live_stream(model, Texts([[3, 4, 5]]), "blocks.*.attn:probs.first", "tokens").schema
    assert [site.dim for site in schema] == [4, 4]


@pytest.mark.truth("the output projection of the values at the first token; doubled weights")
@torch.no_grad()
def test_edits_of_a_fused_call():
    net, x = fused(), torch.randn(2, 5, 16)
    first = torch.zeros(HEADS, 5)
    first[:, 0] = 1.0
    with editing(net, Replace(first.flatten()), "2:probs"):
        edited = net(x)
    attention: Any = net[2]
    values = attention.qkv(net[:2](x))[:, :, 32:]
    torch.testing.assert_close(edited, attention.out(values[:, :1]).expand_as(edited))
    with editing(net, Scale(2.0), "2:queries"):
        edited = net(x)
    attention.qkv.weight[:16] *= 2.0
    attention.qkv.bias[:16] *= 2.0
    torch.testing.assert_close(edited, net(x))


@torch.no_grad()
def test_nothing_stays_open_after_a_forward_that_ends_early():
    net, x = fused(), torch.randn(2, 5, 16)
    with Tap(net, "2:heads") as tap:
        net(x)
    with Tap(net, ["0:queries", "2:heads"], stop=True) as early:
        assert early.run(x) is None
        assert early.run(x) is None
        assert torch.equal(early.rows["2:heads"], tap.rows["2:heads"])
    assert torch._C._len_torch_function_stack() == 0
