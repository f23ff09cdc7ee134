"""The reducer ``predictions``: which logits speak of which token, under padding and in chunks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import bert, gpt2, llama, t5, vit
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.stats import TOKEN_METRICS
from sonde.tap import live_stream
from tap_inputs import Texts, images, texts

ITEMS = [[1, 5, 6, 7, 8, 9], [1, 10, 11], [1, 12, 13, 14], [1, 15, 16, 17, 18]]
TABLE = torch.randn(61, 61, generator=torch.Generator().manual_seed(0))


class Bigram(nn.Module):
    """The logits of what follows a token, from a table: nothing else is known about the text."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Embedding.from_pretrained(TABLE.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.lm_head(input_ids)


def read(module, inputs, sites: Any = "lm_head", task="causal", **options: Any):
    model = Model(module, config=module.__dict__.get("config"), task=task)
    stream = live_stream(model, inputs, sites, options.pop("reducer", "predictions"), **options)
    return stream, list(stream.batches(0, len(inputs)))


def by_place(batches, key):
    return {
        (b.ids[int(e)], int(p)): x
        for b in batches
        for x, e, p in zip(b.rows[key], b.example[key], b.position[key], strict=True)
    }


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.truth("a table of bigrams, looked up by hand")
def test_a_text_of_four_tokens_by_hand(side):
    text = [5, 6, 7, 8]
    _, (batch,) = read(Bigram(), Texts([[9, 9, 9, 9, 9, 9], text], side=side, special=False))
    mine = batch.example["lm_head:out"] == 1
    assert batch.position["lm_head:out"][mine].tolist() == [1, 2, 3]
    rows = batch.rows["lm_head:out"][mine]
    logs = torch.log_softmax(TABLE.double(), dim=1)
    expected = torch.stack([logs[5, 6], logs[6, 7], logs[7, 8]])
    torch.testing.assert_close(rows[:, 0].double(), expected, rtol=1e-5, atol=1e-6)
    entropy = -(logs.exp() * logs).sum(1)[text[:3]]
    torch.testing.assert_close(rows[:, 1].double(), entropy, rtol=1e-5, atol=1e-6)


def test_a_shift_by_one_would_be_noticed():
    """The planted fault: the row of the token itself instead of the one before it."""
    logs = torch.log_softmax(TABLE, dim=1)
    _, (batch,) = read(Bigram(), Texts([[5, 6, 7, 8]], special=False))
    wrong = torch.stack([logs[6, 6], logs[7, 7], logs[8, 8]])
    assert float((batch.rows["lm_head:out"][:, 0] - wrong).abs().min()) > 0.01


@pytest.mark.parametrize(("build", "side"), [(gpt2, "right"), (llama, "right"), (llama, "left")])
@pytest.mark.truth("log_softmax of each document alone, brute force")
def test_a_row_does_not_depend_on_its_batch(build, side):
    module = build()
    stream, batches = read(module, Texts(ITEMS, side=side))
    assert [s.dim for s in stream.schema] == [len(TOKEN_METRICS)]
    assert [s.dtype for s in stream.schema] == ["float32"]
    found = by_place(batches, "lm_head:out")
    assert len(found) == sum(len(i) - 1 for i in ITEMS)
    for n, item in enumerate(ITEMS):
        with torch.no_grad():
            logits = module(torch.tensor([item])).logits[0].double()
        logs = torch.log_softmax(logits, dim=1)
        for position in range(1, len(item)):
            row = found[f"text{n}", position].double()
            token, before = item[position], logs[position - 1]
            at_least = before >= before[token]
            expected = torch.stack(
                [
                    before[token],
                    -(before.exp() * before).sum(),
                    before.max(),
                    at_least.double().mean(),
                    before.exp()[at_least].sum(),
                    at_least.double().sum().log(),
                    (before.exp() * before.square()).sum() - (before.exp() * before).sum().square(),
                ]
            )
            torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-4)


def test_auto_reads_the_logits():
    stream, _ = read(gpt2(), Texts(ITEMS), sites="auto")
    assert [s.key for s in stream.schema] == ["lm_head:out"]


def test_sites_may_have_reducers_of_their_own():
    sites = ["logits|predictions", "logits:in|tokens+special", "transformer.h.0"]
    stream, (batch,) = read(gpt2(), Texts(ITEMS), sites, reducer="mean")
    found = {s.key: (str(s.reducer), s.dim) for s in stream.schema}
    assert list(found.items()) == [
        ("transformer.h.0:out", ("mean", 32)),
        ("lm_head:in", ("tokens+special", 32)),
        ("lm_head:out", ("predictions", 7)),
    ]
    assert [len(batch.rows[key]) for key in found] == [4, 18, 14]


def test_a_site_with_two_reducers_is_refused():
    with pytest.raises(SiteError, match=r"named with two reducers.*further="):
        read(gpt2(), Texts(ITEMS), ["lm_head|predictions", "logits|last"])


def test_the_output_itself_is_a_site():
    _, direct = read(gpt2(), Texts(ITEMS), sites=":out.logits")
    _, layer = read(gpt2(), Texts(ITEMS))
    assert torch.equal(direct[0].rows[":out.logits"], layer[0].rows["lm_head:out"])


def test_special_tokens_predict_but_are_not_scored_unless_kept():
    items = [[1, 5, 2, 6], [1, 7]]
    _, (batch,) = read(Bigram(), Texts(items))
    assert batch.position["lm_head:out"].tolist() == [1, 3, 1]
    _, (kept,) = read(Bigram(), Texts(items), keep_special=True)
    assert kept.position["lm_head:out"].tolist() == [1, 2, 3, 1]
    assert kept.special["lm_head:out"].tolist() == [False, True, False, False]


def test_positions_count_from_the_start_of_the_document():
    _, (batch,) = read(Bigram(), Texts([[5, 6, 7], [8, 9]], starts=[0, 100], special=False))
    assert batch.position["lm_head:out"].tolist() == [1, 2, 101]


def test_a_text_of_one_token_has_no_row():
    _, (batch,) = read(Bigram(), Texts([[5], [6]], special=False))
    assert batch.rows["lm_head:out"].shape == (0, 7)


@pytest.mark.truth("the states of the tokens reducer at the same positions")
def test_rows_line_up_with_hidden_states():
    module = gpt2()
    _, states = read(module, Texts(ITEMS), "transformer.h.2", reducer="tokens", keep_special=True)
    _, metrics = read(module, Texts(ITEMS), keep_special=True)
    hidden = by_place(states, "transformer.h.2:out")
    norm, head = module.transformer.ln_f, module.lm_head
    for (name, position), row in by_place(metrics, "lm_head:out").items():
        with torch.no_grad():
            logs = head(norm(hidden[name, position - 1])).log_softmax(0)
        torch.testing.assert_close(row[2], logs.max(), rtol=1e-4, atol=1e-5)


@pytest.mark.truth("log_softmax of the decoder's logits")
def test_the_decoder_of_an_encoder_decoder():
    module, targets = t5(), [[0, 5, 6, 7], [0, 8]]
    inputs = texts([4, 3], targets=targets)
    _, (batch,) = read(module, inputs, task="seq2seq")
    (raw,) = inputs.batches(0, 2)
    with torch.no_grad():
        logs = module(**raw.kwargs).logits.log_softmax(-1)
    expected = torch.stack([logs[0, 0, 5], logs[0, 1, 6], logs[0, 2, 7], logs[1, 0, 8]])
    torch.testing.assert_close(batch.rows["lm_head:out"][:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "inputs", "sites", "task"),
    [
        (gpt2, texts(), "transformer.h.1", "causal"),
        (bert, texts(), "encoder.layer.1", "encoder"),
        (vit, images(24), "classifier", "image_classifier"),
    ],
)
def test_other_outputs_are_refused(build, inputs, sites, task):
    with pytest.raises(SiteError, match=r"predictions.*(next-token logits|does not fit)"):
        read(build(), inputs, sites, task)


def test_embeddings_instead_of_ids_are_refused():
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(61, 61, bias=False)

        def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.lm_head(inputs_embeds)

    class Embeds(Texts):
        def _batch(self, index):
            batch = super()._batch(index)
            x = nn.functional.one_hot(batch.kwargs.pop("input_ids"), 61).float()
            batch.kwargs["inputs_embeds"] = x
            return batch

    with pytest.raises(InputError, match="expected the token ids"):
        read(Embedded(), Embeds(ITEMS))
