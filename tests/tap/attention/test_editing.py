"""Edits inside an attention: the model goes on as if it had computed what was put there."""

import importlib
from dataclasses import dataclass
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

import models
from attention_models import inputs_of
from sonde.core.edit import Add, Edit, EditContext, Replace, Scale
from sonde.core.errors import SiteError
from sonde.core.site import Site
from sonde.tap import Tap, editing

PORTS = ("queries", "keys", "values", "probs", "heads")


@final
@dataclass(frozen=True, eq=False)
class Copied(Edit):
    """Put a copy in place of what is there."""

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        return x.clone()


def llama_inputs(padded: bool = False) -> tuple[Any, dict[str, Tensor]]:
    model = models.qwen2()
    return model, inputs_of("qwen2", model, padded)


@torch.no_grad()
def test_copies_change_nothing_but_the_kernel_of_edited_probabilities():
    model, inputs = llama_inputs(padded=True)
    plain = model(**inputs)[0]
    for port in PORTS:
        with editing(model, Copied(), f"blocks:{port}"):
            edited = model(**inputs)[0]
        if port == "probs":
            real = inputs["attention_mask"].bool()
            torch.testing.assert_close(edited[real], plain[real], atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(edited, plain)


def by_weights(model: Any, port: str) -> nn.Linear:
    layer = model.model.layers[1].self_attn
    return {"queries": layer.q_proj, "values": layer.v_proj, "keys": layer.k_proj}[port]


@pytest.mark.truth("the same change made in the weights of the projection")
@pytest.mark.parametrize("port", ["values", "keys", "queries"])
@torch.no_grad()
def test_scaled_projections_are_those_of_scaled_weights_also_with_a_cache(port):
    model, inputs = llama_inputs()
    how = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    how |= {"output_logits": True, "return_dict_in_generate": True}
    with editing(model, Scale(3.0), f"layers.1:{port}"):
        edited = model.generate(**inputs, **how)
    layer = by_weights(model, port)
    layer.weight.mul_(3.0)
    layer.bias.mul_(3.0)
    expected = model.generate(**inputs, **how)
    assert torch.equal(edited.sequences, expected.sequences)
    for a, b in zip(edited.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.truth("the bias of the output projection moved by what it makes of the shift")
@torch.no_grad()
def test_a_shift_of_one_head_is_a_shift_after_the_output_projection():
    model, inputs = llama_inputs()
    shift = torch.randn(8, generator=torch.Generator().manual_seed(0))
    with editing(model, Add(shift), "layers.1:heads.2"), Tap(model, "layers.1:heads") as tap:
        edited = model(**inputs)[0]
    out = model.model.layers[1].self_attn.o_proj
    out.bias = nn.Parameter(out.weight[:, 16:24] @ shift)
    torch.testing.assert_close(edited, model(**inputs)[0], atol=1e-5, rtol=1e-5)
    with Tap(model, "layers.1:heads") as before:
        model(**inputs)
    moved = tap.rows["model.layers.1.self_attn:heads"] - before.rows[str(before.sites[0])]
    expected = torch.zeros(32)
    expected[16:24] = shift
    torch.testing.assert_close(moved, expected.expand_as(moved), atol=1e-5, rtol=1e-5)


@pytest.mark.truth("the values at the first token")
@torch.no_grad()
def test_heads_that_look_at_the_first_token_alone_are_its_values():
    model, inputs = llama_inputs()
    first = torch.zeros(4, 7)
    first[:, 0] = 1.0
    sites = ["layers.1:heads", "layers.1:values"]
    with editing(model, Replace(first.flatten()), "layers.1:probs"), Tap(model, sites) as tap:
        model(**inputs)
    heads, values = (tap.rows[f"model.layers.1.self_attn:{p}"] for p in ("heads", "values"))
    values = values.unflatten(2, (2, 8)).repeat_interleave(2, 2).flatten(2)
    torch.testing.assert_close(heads, values[:, :1].expand_as(heads))


@torch.no_grad()
def test_padding_is_left_alone():
    model, inputs = llama_inputs(padded=True)
    with Tap(model, "layers.0:heads") as before:
        model(**inputs)
    with editing(model, Scale(2.0), "layers.0:heads"), Tap(model, "layers.0:heads") as tap:
        model(**inputs)
    a, b = before.rows[str(tap.sites[0])], tap.rows[str(tap.sites[0])]
    real = inputs["attention_mask"].bool()
    assert torch.equal(b[real], 2 * a[real])
    assert torch.equal(b[~real], a[~real])


@torch.no_grad()
def test_values_of_an_encoder_are_padded_as_its_text_is():
    model = models.t5()
    inputs = inputs_of("t5", model, padded=True)
    inputs["decoder_input_ids"] = inputs["decoder_input_ids"].repeat(1, 2)[:, :7]  # as long
    site = "decoder.block.1.layer.1:values"
    with Tap(model, site) as before:
        model(**inputs)
    with editing(model, Scale(2.0), site), Tap(model, site) as tap:
        model(**inputs)
    with Tap(model, site, "mean") as mean:
        model(**inputs)
    (a,), (b,), (m,) = before.rows.values(), tap.rows.values(), mean.rows.values()
    real = inputs["attention_mask"].bool()
    assert torch.equal(b[real], 2 * a[real])
    assert torch.equal(b[~real], a[~real])
    torch.testing.assert_close(m[1], a[1, :4].mean(0))


def test_one_layer_runs_explicitly_and_is_refused_where_heads_are_not_the_product(monkeypatch):
    model, inputs = llama_inputs()
    modeling = importlib.import_module(type(model).__module__)
    explicit, layers = modeling.eager_attention_forward, list[int]()

    def doubled(layer: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layers.append(layer.layer_idx)
        heads, probs = explicit(layer, *args, **kwargs)
        return 2 * heads, probs

    monkeypatch.setattr(modeling, "eager_attention_forward", doubled)
    with (
        editing(model, Copied(), "layers.1:probs"),
        pytest.raises(SiteError, match="not the product of its probabilities and values"),
    ):
        model(**inputs)
    assert layers == [1]


@pytest.mark.truth("the same change made in the weights of the module")
@pytest.mark.parametrize("port", PORTS)
@torch.no_grad()
def test_multihead_attention_goes_on_from_what_was_put_there(port):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    module.in_proj_bias.normal_()
    x = torch.randn(2, 5, 16)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with editing(module, Scale(2.0), f":{port}"):
        edited = module(x, x, x, key_padding_mask=padding)[0]
    if port in ("probs", "heads"):
        module.out_proj.weight.mul_(2.0)
    else:
        part = slice(16 * PORTS.index(port), 16 * PORTS.index(port) + 16)
        module.in_proj_weight[part] *= 2.0
        module.in_proj_bias[part] *= 2.0
    expected = module(x, x, x, key_padding_mask=padding)[0]
    torch.testing.assert_close(edited[~padding], expected[~padding], atol=1e-5, rtol=1e-5)
