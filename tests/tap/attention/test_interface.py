"""Ports of transformers' attentions: what is read is what the kernel did, and nothing changes."""

import pytest
import torch
from torch import Tensor, nn

import models
from attention_models import EVERY, HEADS, IMAGES, heads_of, inputs_of, read
from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.tap import Tap
from sonde.tap.attention.opening import watch_attention
from sonde.tap.hooks.session import Session
from sonde.tap.streams.live import live_stream
from tap_inputs import Texts, images


@pytest.mark.truth("probabilities times values, against the kernel that the model ran")
@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_heads_are_probabilities_times_values_and_no_bit_of_the_output_moves(name):
    model = EVERY[name]()
    for padded in (False,) if name in IMAGES else (False, True):
        inputs = inputs_of(name, model, padded)
        plain = model(**inputs)[0]
        found, output = read(model, inputs)
        assert torch.equal(output, plain)
        real = inputs.get("attention_mask", torch.ones(1)).bool()
        for ports in found:
            gap = (heads_of(ports) - ports["heads"]).abs()
            kept = gap[real] if gap.shape[:2] == real.shape else gap
            assert kept.max() <= 1e-5 * ports["heads"].abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "qwen2", "bert"])
@torch.no_grad()
def test_half_types_agree_to_their_rounding(name, dtype):
    model = EVERY[name]().to(dtype)
    inputs = inputs_of(name, model, padded=False)
    found, output = read(model, inputs)
    assert torch.equal(output, model(**inputs)[0])
    for ports in found:
        gap = (heads_of(ports) - ports["heads"]).abs().max()
        assert gap <= 4 * torch.finfo(dtype).eps * ports["heads"].abs().max()


@torch.no_grad()
def test_generation_with_a_cache_is_the_same_and_keys_are_those_of_new_tokens():
    model = models.qwen2()
    inputs = inputs_of("qwen2", model, padded=False)
    how = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    plain = model.generate(**inputs, **how)
    keys: list[Tensor] = []
    layer = model.model.layers[1].self_attn
    look = watch_attention([(layer, "keys", lambda view: keys.append(view[""].clone()))])
    with Session(model, inside=look):
        again = model.generate(**inputs, **how)
    assert torch.equal(again, plain)
    with Tap(model, "layers.1:keys") as tap:
        model(plain[:, :-1])
    assert [x.shape[1] for x in keys] == [7, 1, 1, 1]
    torch.testing.assert_close(torch.cat(keys, 1), tap.rows["model.layers.1.self_attn:keys"])


@torch.no_grad()
def test_a_stream_reads_the_real_tokens_of_padded_texts():
    model = models.qwen2()
    texts = [[3, 4, 5, 6, 7, 8, 9], [10, 11, 12, 13]]
    sites = ["blocks:heads", "layers.0:keys", "layers.0:queries.3", "layers.1:probs.distance"]
    (batch,) = live_stream(Model(model, task="causal"), Texts(texts), sites, "tokens")
    for key, rows in batch.rows.items():
        expected: list[Tensor] = []
        for text in texts:
            with Tap(model, key) as tap:
                model(torch.tensor([text]))
            expected.append(tap.rows[key][0])
        torch.testing.assert_close(rows, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert [rows.shape[1] for rows in batch.rows.values()] == [8, 16, 32, 4, 32, 32]


def test_a_row_as_wide_as_its_text_is_refused_and_one_of_an_image_is_not():
    with pytest.raises(
        SiteError, match=r"is the length of its text.*layers\.1\.self_attn:probs\.KEY"
    ):
        _ = live_stream(Model(models.llama()), Texts([[3, 4, 5, 6]]), "layers.1:probs").schema
    patches = live_stream(Model(models.vit()), images(24), "layers.1:probs", "patches")
    assert patches.schema[0].dim == HEADS * 17


@pytest.mark.truth("sums written out over queries and keys")
@torch.no_grad()
def test_figures_of_heads_are_those_of_their_probabilities():
    model = models.llama()
    ids, mask = torch.arange(3, 15).view(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0  # padding on the left
    names = ("entropy", "entropy_nats", "first", "self", "distance")
    with Tap(model, [f"layers.1:probs{key}" for key in ("", *(f".{n}" for n in names))]) as tap:
        model(ids, attention_mask=mask)
    path = "model.layers.1.self_attn:probs"
    probs = tap.rows[path].unflatten(2, (HEADS, 6)).double()
    for example, start in ((0, 0), (1, 2)):
        for query in range(start, 6):
            p = probs[example, query]
            nats = -(p.clamp(min=1e-300).log() * p).sum(-1)
            n_keys = query - start + 1
            share = nats / torch.tensor(n_keys).log() if n_keys > 1 else torch.ones(HEADS)
            distance = p @ (query - torch.arange(6.0)).abs().double()
            expected = share, nats, p[:, start], p[:, query], distance
            for name, values in zip(names, expected, strict=True):
                got = tap.rows[f"{path}.{name}"][example, query].double()
                torch.testing.assert_close(got, values.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            "layers.0.mlp:heads",
            r"expected an attention .*, got .*mlp' \(LlamaMLP\)",
        ),
        (":heads", r"holds 3 attention layers: model\.layers\.0\.self_attn, .* Name one of them"),
        ("layers.0:heads.4", r"no tensor '4', only \['0', '1', '2', '3'\]"),
    ],
)
def test_what_is_no_port_of_an_attention_is_refused(site, message):
    stream = live_stream(Model(models.llama()), Texts([[3, 4, 5]]), site)
    with pytest.raises(SiteError, match=message):
        _ = stream.schema


def test_a_figure_cannot_be_changed():
    model = models.llama()
    layer = model.model.layers[0].self_attn
    look = watch_attention([(layer, "probs", lambda view: {"first": view["first"] * 0})])
    with Session(model, inside=look), pytest.raises(SiteError, match="a statistic of the heads"):
        model(torch.arange(3, 8)[None])


def test_nothing_is_left_behind_when_a_forward_raises():
    from transformers.modeling_utils import AttentionInterface

    before, model = AttentionInterface.get_interface, models.llama()
    layer = model.model.layers[0].self_attn

    def broken(view: object) -> None:
        assert AttentionInterface.get_interface is not before
        raise RuntimeError("broken")

    session = Session(model, inside=watch_attention([(layer, "heads", broken)]))
    with pytest.raises(RuntimeError, match="broken"), session:
        model(torch.arange(3, 8)[None])
    assert AttentionInterface.get_interface is before
    assert not any(m._forward_pre_hooks for m in nn.Module.modules(model))
