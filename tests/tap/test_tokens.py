"""Padding, positions, special tokens, axes: a row is the same whatever batch it came in."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import (
    bert,
    dinov2,
    gpt2,
    llama,
    lstm,
    mixtral,
    opt,
    roberta,
    swin,
    t5,
    vit,
)
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.core.site import Reducer
from sonde.tap import Tap, live_stream
from tap_inputs import Arrays, Texts, images, texts

ITEMS = [[1, 5, 6, 7, 8, 9], [1, 10, 11], [1, 12, 13, 14], [1, 15, 16, 17, 18]]


def whole(module: nn.Module, inputs, reducer: str, task: str = "causal", **options):
    model = Model(module, config=module.__dict__.get("config"), task=task)
    stream = live_stream(model, inputs, options.pop("sites", "auto"), reducer, **options)
    return stream, list(stream.batches(0, len(inputs)))


def by_place(batches, key: str) -> dict[tuple[str, int], Tensor]:
    """Rows by (example id, position)."""
    found = {}
    for b in batches:
        for x, e, p in zip(b.rows[key], b.example[key], b.position[key], strict=True):
            found[b.ids[int(e)], int(p)] = x
    return found


@pytest.mark.parametrize("build", [gpt2, llama, opt, bert, roberta, lstm], ids=lambda b: "")
@pytest.mark.truth("each document alone, without padding")
def test_a_row_does_not_depend_on_its_batch(build):
    module = build()
    more: dict[str, Any] = {"further": ("tokens", "mean", "cls")}
    _, alone = whole(module, Texts(ITEMS, batch_size=1), "last", **more)
    assert len(alone[0].rows) == 12
    _, together = whole(module, Texts(ITEMS, batch_size=4), "last", **more)
    for key in alone[0].rows:
        expected, found = by_place(alone, key), by_place(together, key)
        assert expected.keys() == found.keys()
        for place, x in expected.items():
            torch.testing.assert_close(found[place], x, rtol=1e-4, atol=1e-5)


@pytest.mark.truth("the plain forward of the batch as it is given")
def test_padding_stays_where_it_is_given():
    """GPT-2 counts the positions of left padding, so its states are not those of the text alone."""
    module = gpt2()
    given = next(Texts(ITEMS, side="left").batches(0, 4))
    with torch.no_grad():
        states = module.transformer(**given.kwargs, output_hidden_states=True).hidden_states[1]
        alone = module.transformer(torch.tensor([ITEMS[1]]), output_hidden_states=True)
    assert float((states[1, -3:] - alone.hidden_states[1][0]).abs().max()) > 0.05
    _, batches = whole(module, Texts(ITEMS, side="left"), "last", further=("tokens",))
    rows = by_place(batches, "transformer.h.0:out")
    for i in range(len(ITEMS)):
        torch.testing.assert_close(rows[f"text{i}", 0], states[i, -1])
    every = by_place(batches, "transformer.h.0:out|tokens")
    for (name, position), x in every.items():
        i = int(name[4:])
        torch.testing.assert_close(x, states[i, position - len(ITEMS[i])])


def test_permuting_documents_permutes_rows():
    module = gpt2()
    order = [2, 0, 3, 1]
    _, straight = whole(module, Texts(ITEMS), "tokens")
    _, shuffled = whole(module, Texts([ITEMS[i] for i in order]), "tokens")
    key = "transformer.h.1:out"
    found = by_place(shuffled, key)
    for (name, position), x in by_place(straight, key).items():
        there = f"text{order.index(int(name[4:]))}", position
        torch.testing.assert_close(found[there], x, rtol=1e-4, atol=1e-6)


@pytest.mark.truth("a marker planted in the embedding of one token")
def test_a_marked_token_is_found_at_its_place():
    module = gpt2()
    with torch.no_grad():
        module.transformer.wte.weight[13] = 1000.0
    _, batches = whole(module, Texts(ITEMS, side="left"), "tokens", sites="wte")
    norms = {p: float(x.norm()) for p, x in by_place(batches, "transformer.wte:out").items()}
    assert max(norms, key=norms.__getitem__) == ("text2", 2)


def test_positions_count_from_the_start_of_the_document():
    _, (batch,) = whole(gpt2(), Texts(ITEMS[:2], starts=[0, 100]), "tokens")
    assert batch.position["transformer.h.0:out"].tolist() == [1, 2, 3, 4, 5, 101, 102]
    _, (batch,) = whole(gpt2(), Texts(ITEMS[:2], starts=[0, 100]), "last")
    assert batch.position["transformer.h.0:out"].tolist() == [0, 100]


def test_special_tokens_are_dropped_unless_kept():
    stream, (batch,) = whole(gpt2(), Texts(ITEMS), "tokens")
    assert 0 not in batch.position["transformer.h.0:out"].tolist()
    assert batch.extra["special_dropped"].tolist() == [1, 1, 1, 1]
    kept, (with_special,) = whole(gpt2(), Texts(ITEMS), "tokens", keep_special=True)
    assert len(with_special.rows["transformer.h.0:out"]) == sum(map(len, ITEMS))
    assert int(with_special.special["transformer.h.0:out"].sum()) == 4
    assert str(kept.schema[0].reducer) == "tokens+special"
    assert stream.identity() != kept.identity()


def test_token_zero_is_an_ordinary_token_without_a_tokenizer():
    _, (batch,) = whole(gpt2(), Texts([[0, 0, 5], [0]], special=False), "tokens")
    assert len(batch.rows["transformer.h.0:out"]) == 4


@pytest.mark.parametrize(
    ("items", "reducer", "message"),
    [
        ([[1, 5], [1, 2]], "mean", r"ordinary token.*text1.*keep_special"),
        ([[1, 5], []], "last", r"real token.*text1"),
        ([[1, 5], []], "tokens", r"real token.*text1"),
    ],
)
def test_an_example_without_tokens_is_named(items, reducer, message):
    with pytest.raises(InputError, match=message):
        whole(gpt2(), Texts(items), reducer)


class Poisoned(nn.Module):
    """Embeddings, and something that is no number wherever a token is padded."""

    def __init__(self, poison: float) -> None:
        super().__init__()
        self.embed, self.out, self.poison = nn.Embedding(61, 6), nn.Identity(), poison

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        return self.out(x.masked_fill(attention_mask[..., None] == 0, self.poison))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.truth("the mean of each document alone")
def test_a_nan_at_a_padded_position_does_not_reach_the_mean(poison):
    module = Poisoned(poison)
    _, (batch,) = whole(module, Texts(ITEMS), "mean", sites="out")
    expected = torch.stack([module.embed.weight[torch.tensor(i[1:])].mean(0) for i in ITEMS])
    torch.testing.assert_close(batch.rows["out:out"], expected.detach())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.truth("the mean of each document alone")
def test_nor_does_it_reach_the_mean_of_a_tap(poison):
    module, ids = Poisoned(poison), torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with Tap(module, ["out"], "mean") as tap:
        module(ids, mask)
    expected = torch.stack([module.embed.weight[i].mean(0) for i in (ids[0], ids[1, :2])])
    torch.testing.assert_close(tap.rows["out:out"], expected.detach())


def test_rows_of_states_with_other_tokens_than_the_mask_are_refused():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.pool = nn.Embedding(61, 6), nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.pool(self.embed(input_ids)[:, ::2])

    with pytest.raises(SiteError, match=r"axis of examples|tokens as in the attention mask"):
        whole(Halves(), Texts(ITEMS), "tokens", sites="pool")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.truth("the nested output, unbound")
def test_nested_tensors_of_a_transformer_encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    more = {"src_key_padding_mask": ~mask}
    inputs = Arrays(x, keyword="src", mask=mask, more=more)
    seen = []
    handle = encoder.layers[0].register_forward_hook(lambda m, a, o: seen.append(o))
    with torch.no_grad():
        encoder(src=x, **more)
    handle.remove()
    assert seen[0].is_nested
    for reducer, expected in {
        "tokens": torch.cat(seen[0].unbind()),
        "mean": torch.stack([part.mean(0) for part in seen[0].unbind()]),
    }.items():
        _, (batch,) = whole(encoder, inputs, reducer, task="encoder")
        torch.testing.assert_close(batch.rows["layers.0:out"], expected)


def test_encoder_decoder_sites_follow_their_own_tokens():
    inputs = texts([4, 3], targets=[[0, 5, 6, 7, 8], [0, 9]])
    stream, (batch,) = whole(t5(), inputs, "tokens", task="seq2seq")
    axes = {s.key: s.axes for s in stream.schema}
    assert axes["encoder.block.0:out"] == "row pos dim"
    assert axes["decoder.block.0:out"] == "row pos2 dim"
    assert len(batch.rows["encoder.block.0:out"]) == 3 + 2
    assert batch.position["decoder.block.0:out"].tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_sites_of_one_layout_share_their_columns():
    _, (batch,) = whole(llama(), Texts(ITEMS), "last", further=("tokens", "mean"))
    names = [f"model.layers.{i}:out" for i in range(3)]
    for suffix in ("", "|tokens"):
        assert batch.example[names[0] + suffix] is batch.example[names[2] + suffix]
        assert batch.position[names[0] + suffix] is batch.position[names[2] + suffix]
    assert batch.example[names[0]] is batch.example[names[0] + "|mean"]


# images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "prefix"), [(vit, 1), (dinov2, 5)])
@pytest.mark.truth("tokens before the patches, from the configuration")
def test_class_and_register_tokens_are_no_patches(build, prefix):
    module = build()
    stream, (batch,) = whole(module, images(24, n=3), "patches", task="encoder")
    key = stream.schema[0].key
    layer = module.get_submodule(stream.schema[0].site.path)
    seen = []
    handle = layer.register_forward_hook(lambda m, a, o: seen.append(o.clone()))
    with torch.no_grad():
        module(images(24, n=3).x)
    handle.remove()
    assert torch.equal(batch.rows[key], seen[0][:, prefix:].flatten(0, 1))
    assert batch.grid[key][:6].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
    _, (means,) = whole(module, images(24, n=3), "mean", task="encoder")
    torch.testing.assert_close(means.rows[key], seen[0][:, prefix:].mean(1))


def test_grids_of_images_that_are_not_square():
    x = torch.randn(2, 3, 32, 64)
    _, (batch,) = whole(swin(), Arrays(x, "pixel_values"), "patches", task="image_classifier")
    assert batch.grid["swin.encoder.layers.0:out"].max(0).values.tolist() == [3, 7]
    assert batch.grid["swin.encoder.layers.2:out"].max(0).values.tolist() == [1, 3]


class ChannelsLast(nn.Module):
    """Features in the last of four axes, without any parameter that would tell."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class FixedSize(nn.Module):
    """Refuses images of another size than the one that it was made for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.body = size, nn.Sequential(nn.Conv2d(3, 5, 1), ChannelsLast())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.size:
            raise ValueError("wrong size")
        return self.body(x)


@pytest.mark.truth("the permutation, written out")
def test_axes_by_probe_or_by_parameters():
    x = torch.randn(2, 3, 6, 6)
    free = nn.Sequential(nn.Conv2d(3, 5, 1), ChannelsLast())
    stream, _ = whole(free, Arrays(x), "mean", task="tensor")
    assert [s.axes for s in stream.schema] == ["row dim h w", "row h w dim"]
    fixed = FixedSize(6)
    stream, (batch,) = whole(fixed, Arrays(x), "patches", task="tensor", sites="body.*")
    assert [s.axes for s in stream.schema] == ["row dim h w", "row h w dim"]
    with torch.no_grad():
        expected = fixed(x).reshape(-1, 5)
    assert torch.equal(batch.rows["body.1:out"], expected)


def test_an_axis_that_cannot_be_told_asks_for_it():
    class Bare(FixedSize):
        def __init__(self) -> None:
            super().__init__(6)
            self.body = nn.Sequential(nn.Identity(), ChannelsLast())

    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(SiteError, match=r"Reducer\(name, axis=...\)"):
        whole(Bare(), Arrays(x), "mean", task="tensor", sites="body.1")
    stream = live_stream(Model(Bare()), Arrays(x), "body.1", Reducer("mean", axis=3))
    assert stream.schema[0].dim == 3


MISFITS = {
    "patches of text": (gpt2, texts(), "patches"),
    "flat text": (gpt2, texts(), "flat"),
    "tokens of images": (vit, images(24), "tokens"),
    "no class token": (swin, images(32), "cls"),
    "last patch": (vit, images(24), "last"),
}


@pytest.mark.parametrize(("build", "inputs", "reducer"), MISFITS.values(), ids=MISFITS)
def test_a_reducer_that_does_not_fit_lists_those_that_do(build, inputs, reducer):
    with pytest.raises(SiteError, match=r"does not fit this output.*Possible here: mean"):
        whole(build(), inputs, reducer)


def test_routed_experts_are_read_as_the_blocks_around_them():
    stream, (batch,) = whole(mixtral(), texts(batch_size=5), "tokens")
    assert [s.module for s in stream.schema] == ["MixtralDecoderLayer"] * 3
    assert len(batch.rows["model.layers.0:out"]) == 20
    _, (batch,) = whole(mixtral(), texts(batch_size=5), "tokens", sites="layers.0.mlp.experts")
    assert len(batch.rows["model.layers.0.mlp.experts:out"]) == 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.truth("the same model's states, averaged in float64")
def test_half_precision_rows_keep_their_type(dtype):
    module = llama().to(dtype)
    stream, (batch,) = whole(module, Texts(ITEMS), "mean")
    assert stream.schema[0].dtype == str(dtype).removeprefix("torch.")
    _, (tokens,) = whole(module, Texts(ITEMS), "tokens")
    key = "model.layers.2:out"
    assert batch.rows[key].dtype == dtype
    for i in range(4):
        rows = tokens.rows[key][tokens.example[key] == i].double()
        torch.testing.assert_close(batch.rows[key][i], rows.mean(0).to(dtype), rtol=0.01, atol=1e-3)


def test_recurrent_nets_return_states_first():
    stream, (batch,) = whole(lstm(), Texts(ITEMS), "mean", sites=["lstm", "lstm:out.1_0"])
    assert {s.key: s.axes for s in stream.schema} == {
        "lstm:out": "row pos dim",
        "lstm:out.1_0": "patch row dim",
    }
    assert batch.rows["lstm:out"].shape == batch.rows["lstm:out.1_0"].shape == (4, 12)
