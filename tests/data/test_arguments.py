"""Items that hold more than token ids or pixels: every argument reaches ``forward``, masked."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    FNetConfig,
    FNetModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTModel,
)

import sonde
from narrow import present
from sonde.core import errors
from sonde.data import load, open_inputs

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}

VIT = ViTConfig(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    image_size=8,
    patch_size=4,
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SMALL, initializer_range=0.5)).eval()


class Fused(nn.Module):
    """Adds features of the item and values of its tokens to the tokens' states."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.image, self.head = nn.Embedding(20, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, input_ids, features, weights, attention_mask=None):
        states = self.embed(input_ids) * weights[..., None] + self.image(features)[:, None]
        return self.head(states)


class Passing(nn.Module):
    """Hands its keyword arguments on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, **kwargs):
        return self.inner(input_ids, **kwargs).last_hidden_state


class OtherName(nn.Module):
    """Takes the mask under a name that nobody can know."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, m=None):
        return self.inner(input_ids, attention_mask=m).last_hidden_state


def rows_of(stream):
    (site,) = (s.key for s in stream.schema)
    found = {}
    for batch in stream:
        for example, row in zip(batch.example[site].tolist(), batch.rows[site], strict=True):
            found.setdefault(int(batch.order[example]), []).append(row)
    return [torch.stack(found[i]) for i in sorted(found)]


@pytest.mark.truth("the module itself on each item")
def test_other_arguments_are_padded_or_stacked():
    model, generator = Fused().eval(), torch.Generator().manual_seed(1)
    items = [
        {
            "input_ids": list(range(1, n + 1)),
            "features": torch.randn(4, generator=generator),
            "weights": torch.randn(n, generator=generator),
            "source": "web",
        }
        for n in (3, 5, 4)
    ]
    found = rows_of(sonde.read(model, items, sites="head", reducer="tokens"))
    for item, rows in zip(items, found, strict=True):
        one = (torch.tensor([item["input_ids"]]), item["features"][None], item["weights"][None])
        torch.testing.assert_close(rows, model(*one)[0].detach())


def test_the_id_covers_every_argument(encoder):
    ids = [4, 5, 6]
    items = [{"input_ids": ids, "position_ids": p} for p in ([0, 1, 2], [7, 8, 9], [0, 1, 2])]
    inputs = open_inputs(load(encoder), items)
    assert inputs.ids[0] == inputs.ids[2] != inputs.ids[1]
    with pytest.raises(errors.InputError, match=r"item 1 .*no value in column 'position_ids'"):
        open_inputs(load(encoder), [*items[:1], {"input_ids": ids}])


def test_columns_that_forward_has_no_name_for_are_said(encoder):
    items = [{"input_ids": [4, 5], "special_tokens_mask": [0, 1], "source": "web"}]
    inputs = open_inputs(load(encoder), items)
    assert inputs.notes == (
        "Not read, because forward has no argument of that name: special_tokens_mask.",
    )
    assert inputs.ids == open_inputs(load(encoder), [{"input_ids": [4, 5]}]).ids


@pytest.mark.truth("the decoder's last states of each item alone, by transformers")
def test_a_decoder_reads_the_tokens_that_it_is_given(t5):
    model, site = load(t5), "decoder.final_layer_norm"
    given = [([4, 5, 9], [0, 6, 7, 8]), ([11, 4], [0, 12]), ([7, 7, 5, 13], [0, 5, 5])]
    items = [{"input_ids": i, "decoder_input_ids": d} for i, d in given]
    items[1] |= {"decoder_input_ids": [0, 12, 0], "decoder_attention_mask": [1, 1, 0]}
    (batch,) = sonde.read(model, items, sites=site, reducer="last")
    for order, row in zip(batch.order.tolist(), batch.rows[f"{site}:out"], strict=True):
        ids, target = (torch.tensor([x]) for x in given[order])
        with torch.no_grad():
            outputs = model.module(
                input_ids=ids, decoder_input_ids=target, output_hidden_states=True
            )
        torch.testing.assert_close(row, outputs.decoder_hidden_states[-1][0, -1])
    assert len({*open_inputs(model, [items[0], items[0] | {"decoder_input_ids": [0, 6]}]).ids}) == 2
    wrong = [items[0] | {"decoder_attention_mask": [1]}]
    with pytest.raises(errors.InputError, match="expected 4 numbers in column 'decoder_att"):
        open_inputs(model, wrong)


def test_arguments_beside_texts_and_images_are_refused(encoder, bert, vit):
    model = load(encoder, processor=load(bert).processor)
    pixels = load(ViTModel(VIT), processor=load(vit).processor)
    items = [{"text": "a b", "position_ids": [0, 1, 2, 3], "attention_mask": [1], "scores": [1.0]}]
    with pytest.raises(errors.InputError, match=r"argument 'position_ids'.* column 'text'.*input_"):
        open_inputs(model, items)
    with pytest.raises(errors.InputError, match=r"argument 'bool_masked_pos'.* column 'image'"):
        open_inputs(pixels, [{"image": "a.png", "bool_masked_pos": [True] * 4}])
    with pytest.raises(errors.InputError, match=r"argument 'position_ids'.* column 'text'"):
        open_inputs(load(encoder, processor=Letters("left")), items)
    del items[0]["position_ids"]
    assert open_inputs(model, items).notes == ()


@pytest.mark.truth("the model itself on the unpadded item")
def test_token_types_are_given_with_their_padding_and_0_where_missing(encoder):
    full = {"input_ids": [2, 4, 5, 3, 6], "token_type_ids": [0, 0, 0, 1, 1]}
    left = {
        "input_ids": [0, 0, 2, 4, 3, 7],
        "attention_mask": [0, 0, 1, 1, 1, 1],
        "token_type_ids": [1, 1, 0, 0, 1, 1],
    }
    bare = {"input_ids": [2, 4, 3]}
    stream = sonde.read(encoder, [full, left, bare], sites="encoder.layer.0", reducer="tokens")
    for rows, item in zip(rows_of(stream), (full, left, bare), strict=True):
        given = {"attention_mask": [1] * len(item["input_ids"]), **item}
        kwargs = {name: torch.tensor([values]) for name, values in given.items()}
        with torch.no_grad():
            made = encoder(**kwargs).last_hidden_state
        real = kwargs["attention_mask"][0] == 1
        torch.testing.assert_close(rows, made[0, real], rtol=1e-5, atol=1e-5)


def test_chunks_carry_their_own_values(encoder):
    items = [{"input_ids": [*range(1, 8)], "token_type_ids": [0, 0, 0, 0, 0, 1, 1]}]
    (batch,) = open_inputs(load(encoder), items, max_length=4).batches(0, 2)
    found = {
        int(o): row for o, row in zip(batch.order, batch.kwargs["token_type_ids"], strict=True)
    }
    assert found[0].tolist() == [0, 0, 0, 0]
    assert found[1].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids"])
def test_lengths_that_differ_are_named(encoder, name):
    with pytest.raises(errors.InputError, match=rf"item 0 .*expected 3 numbers in column '{name}'"):
        open_inputs(load(encoder), [{"input_ids": [2, 4, 3], name: [1, 1]}])


@pytest.mark.truth("the model itself on each item")
def test_pixels_come_with_their_other_arguments():
    torch.manual_seed(0)
    model = ViTModel(VIT, use_mask_token=True).eval()
    pixels = torch.randn(3, 8, 8)
    masks = torch.tensor([[True, False, False, True], [False, False, True, False]])
    items = [{"pixel_values": pixels, "bool_masked_pos": m} for m in masks]
    stream = sonde.read(model, items, sites="layernorm", reducer="cls")
    for rows, mask in zip(rows_of(stream), masks, strict=True):
        with torch.no_grad():
            made = model(pixels[None], bool_masked_pos=mask[None]).last_hidden_state[:, 0]
        torch.testing.assert_close(rows, made)


@pytest.mark.truth("the model itself on each text")
@pytest.mark.parametrize("wrapper", [Passing, OtherName])
def test_padding_does_not_leak_where_the_mask_has_no_name(encoder, bert, wrapper):
    tokenizer = load(bert).processor
    texts = ["cat", "a b c d", "dog sat", "a", "mat on"]
    model = wrapper(encoder)
    stream = sonde.read(model, texts, sites=":out", reducer="tokens", processor=tokenizer)
    for text, rows in zip(texts, rows_of(stream), strict=True):
        with torch.no_grad():
            made = encoder(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state
        torch.testing.assert_close(rows, made[0, 1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.truth("the model itself on each text")
def test_a_model_without_a_mask_that_swallows_any_argument_sees_no_padding(bert):
    torch.manual_seed(0)
    model = FNetModel(FNetConfig(**SMALL)).eval()
    tokenizer, texts = load(bert).processor, ["cat", "a b c d", "dog sat"]
    stream = sonde.read(model, texts, sites=":out", reducer="cls", processor=tokenizer)
    for text, row in zip(texts, rows_of(stream), strict=True):
        with torch.no_grad():
            made = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[:, 0]
        torch.testing.assert_close(row, made, rtol=1e-5, atol=1e-5)


def test_batches_of_one_length_are_said_and_named(encoder, bert):
    inputs = open_inputs(
        load(OtherName(encoder), processor=load(bert).processor), ["a", "a b", "b"]
    )
    assert [len(b.ids) for b in inputs.batches(0, 3)] == [2, 1]
    assert "takes no attention_mask" in inputs.notes[0]
    assert inputs.identity()["even"]


class Letters:
    """A processor that pads on a side and declares 1 special."""

    all_special_ids = (0, 1)
    unk_token_id, bos_token_id, eos_token_id = None, 1, None

    def __init__(self, side):
        self.side = side

    def __call__(self, text):
        ids, missing = [1, *(ord(c) - 90 for c in text)], [0] * (7 - len(text))
        kept = [1] * len(ids)
        both = (ids, missing), (kept, missing)
        parts = [(b + a if self.side == "left" else a + b) for a, b in both]
        return {"input_ids": parts[0], "attention_mask": parts[1]}


@pytest.mark.truth("the model itself on each text without padding")
@pytest.mark.parametrize("reducer", ["last", "mean", "tokens"])
def test_the_mask_of_a_processor_function_is_read(encoder, reducer):
    texts = ["abc", "e", "hgfed"]
    stream = sonde.read(
        encoder, texts, sites="encoder.layer.0", reducer=reducer, processor=Letters("right")
    )
    for text, rows in zip(texts, rows_of(stream), strict=True):
        ids = torch.tensor([[1, *(ord(c) - 90 for c in text)]])
        with torch.no_grad():
            states = encoder(ids).last_hidden_state[0]
        expected = {"last": states[-1:], "mean": states[1:].mean(0)[None], "tokens": states[1:]}
        torch.testing.assert_close(rows, expected[reducer], rtol=1e-5, atol=1e-5)


def test_lengths_and_padding_follow_from_the_mask(encoder):
    inputs = open_inputs(load(encoder, processor=Letters("left")), ["abc", "e"])
    (batch,) = inputs.batches(0, 2)
    assert batch.columns["length"].tolist() == [4, 2]
    assert batch.columns["padding"].tolist() == [4, 6]


def test_a_mask_over_something_else_is_no_mask_of_tokens():
    class Sound(nn.Module):
        def forward(self, values, attention_mask):
            return values

    items = [{"values": torch.randn(6), "attention_mask": torch.ones(6)} for _ in range(2)]
    (batch,) = open_inputs(load(Sound()), items).batches(0, 2)
    assert batch.mask is None


@pytest.mark.truth("the model itself on each text")
def test_a_classifier_is_padded_as_it_finds_its_last_token(bert):
    tokenizer = load(bert).processor
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, pad_token_id=19, initializer_range=0.5)
    config.num_labels = 3
    model = LlamaForSequenceClassification(config).eval()
    texts = ["a", "a b c d", "cat sat"]
    (batch,) = sonde.read(model, texts, processor=tokenizer, logits=True)
    for order, logits in zip(batch.order.tolist(), present(batch.logits), strict=True):
        with torch.no_grad():
            made = model(torch.tensor([tokenizer(texts[order])["input_ids"]])).logits[0]
        torch.testing.assert_close(logits, made, rtol=1e-5, atol=1e-5)
