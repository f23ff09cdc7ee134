"""Models with habits of their own: class tokens at the end, windows, decoders, switches."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BigBirdConfig,
    BigBirdModel,
    LongformerConfig,
    LongformerModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    XLNetConfig,
    XLNetForSequenceClassification,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

import sonde
from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.detect import Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.watching.guard import Guard
from sonde.tap import Tap, live_stream
from tap_inputs import Arrays, Texts, padded

CLS = 2
DRAW = torch.Generator().manual_seed(0)
WORDS = [torch.randint(3, 30, (2 + i % 6,), generator=DRAW).tolist() for i in range(40)]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 30,
}


def longformer():
    torch.manual_seed(0)
    config = LongformerConfig(
        **SMALL, intermediate_size=32, attention_window=8, max_position_embeddings=80,
        pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return Model(LongformerModel(config).eval(), config=config, task="encoder")


def t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config).eval()


@pytest.mark.truth("the states of single texts")
def test_a_class_token_at_the_end_is_read_there():
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=30, d_model=16, n_layer=2, n_head=2, d_inner=32, initializer_range=0.3
    )
    net = XLNetForSequenceClassification(config).eval()
    items = [[*words, CLS] for words in WORDS[:6]]
    model = Model(
        net, config=config, task="classifier", processor=SimpleNamespace(cls_token_id=CLS)
    )
    stream = live_stream(model, Texts(items), "transformer.layer.1")
    assert str(stream.schema[0].reducer) == "last"
    batch = next(iter(stream))
    for row, at in zip(batch.rows["transformer.layer.1:out"], batch.order.tolist(), strict=True):
        with Tap(net, "transformer.layer.1") as tap:
            net(input_ids=torch.tensor([items[at]]))
        torch.testing.assert_close(row, tap.rows["transformer.layer.1:out"][-1, 0])


def test_no_class_token_where_none_stands():
    model = longformer()
    model = Model(
        model.module,
        config=model.config,
        task="encoder",
        processor=SimpleNamespace(cls_token_id=CLS),
    )
    for items, name in ((WORDS[:6], "mean"), ([[CLS, *words] for words in WORDS[:6]], "cls")):
        assert str(live_stream(model, Texts(items), "encoder").schema[0].reducer) == name


@pytest.mark.truth("the model's outputs for single texts")
def test_windows_that_a_model_fills_itself_are_cut_again():
    model = longformer()
    for site in ("encoder", "encoder.layer.1"):
        batch = next(iter(live_stream(model, Texts(WORDS[:6], special=False), site, "mean")))
        for row, at in zip(batch.rows[f"{site}:out"], batch.order.tolist(), strict=True):
            with torch.no_grad():
                alone = model.module(input_ids=torch.tensor([WORDS[at]])).last_hidden_state[0]
            torch.testing.assert_close(row, alone.mean(0), rtol=1e-4, atol=1e-5)


def test_a_model_that_switches_its_attention_is_refused():
    config = BigBirdConfig(
        **SMALL, intermediate_size=32, block_size=2, num_random_blocks=1, max_position_embeddings=80
    )
    net = BigBirdModel(config).eval()
    with pytest.raises(SiteError, match="switches permanently to full attention"):
        _ = live_stream(net, Texts(WORDS[:6]), "encoder.layer.0").schema
    assert net.attention_type == "block_sparse"
    net.set_attention_type("original_full")
    assert len(live_stream(net, Texts(WORDS[:6]), "encoder.layer.0").schema) == 1


@pytest.mark.truth("the states of the decoder by a plain hook")
@pytest.mark.parametrize("reducer", ["mean", "last"])
def test_a_tap_masks_a_decoder_by_its_own_mask(reducer):
    net = t5()
    ids, mask = padded([WORDS[3], WORDS[0]])
    made, real = padded([WORDS[1], WORDS[5]])
    call = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": made}
    for own, masked in (
        (torch.ones_like(real), call),
        (real, call | {"decoder_attention_mask": real}),
    ):
        with Tap(net, "decoder.block.1", reducer) as tap, Tap(net, "decoder.block.1") as plain:
            net(**masked)
        states, rows = plain.rows["decoder.block.1:out"], tap.rows["decoder.block.1:out"]
        for row, state, kept in zip(rows, states, own, strict=True):
            wanted = state[kept].mean(0) if reducer == "mean" else state[kept][-1]
            torch.testing.assert_close(row, wanted)
    with Tap(net, "encoder.block.1", "mean") as tap, Tap(net, "encoder.block.1") as plain:
        net(**call)
    state = plain.rows["encoder.block.1:out"][1][mask[1]]
    torch.testing.assert_close(tap.rows["encoder.block.1:out"][1], state.mean(0))


def test_a_guard_counts_the_tokens_of_a_decoder_alone():
    net = t5()
    texts = Texts(WORDS, targets=WORDS[::-1], special=False)
    model = Model(net, config=net.config, task="seq2seq")
    probe = fit(
        Mahalanobis(), live_stream(model, texts, "decoder.block.1", "tokens"), progress=False
    )
    ids, mask = padded(WORDS[:4])
    with Guard(model, probe, alpha=None) as guard:
        net.generate(input_ids=ids, attention_mask=mask, min_new_tokens=6, max_new_tokens=6)
    ((name, position),) = guard.position.items()
    for i in range(4):
        assert position[guard.example[name] == i].tolist() == list(range(6))


def test_dropout_stays_off_until_the_last_reader_has_left():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    first, second = threading.Event(), threading.Event()
    modes = []

    def slow():
        with Tap(net, "1"):
            first.set()
            second.wait(10)
            modes.append(net[1].training)

    thread = threading.Thread(target=slow)
    thread.start()
    first.wait(10)
    with Tap(net, "1"):
        pass
    second.set()
    thread.join()
    assert modes == [False]
    assert all(module.training for module in net.modules())


class Thin(nn.Module):
    """Hands a sparse tensor on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu().to_sparse()


class Dense(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to_dense()


def test_a_sparse_output_is_left_out_of_auto_with_its_reason():
    net = nn.Sequential(nn.Linear(4, 8), Thin(), Dense(), nn.Linear(8, 3)).eval()
    stream = live_stream(Model(net), Arrays(torch.randn(6, 4)))
    assert [s.key for s in stream.schema] == ["0:out", "2:out", "3:out"]
    (left,) = stream.left_out
    assert left.site == "1:out"
    assert "expected a dense output, got an output of layout sparse_coo" in left.reason
    assert sum(len(b.ids) for b in stream) == 6


class Picks(nn.Module):
    def forward(self, x):
        return x.argmax(1)


class Branches(nn.Module):
    """A part that returns whole numbers and a part that never runs, beside two that can be read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.pick, self.never = nn.Linear(5, 7), Picks(), nn.Linear(2, 2)
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(h) * (1 + self.pick(h)[:, None])


def test_a_star_reads_what_can_be_read_and_names_the_rest():
    net, x = Branches().eval(), torch.randn(6, 5)
    stream = sonde.read(net, x, sites="*")
    (batch,) = stream
    assert list(batch.rows) == ["first:out", "last:out", ":out"]
    torch.testing.assert_close(batch.rows["first:out"], net.first(x).detach())
    left = {one.site: one.reason for one in stream.left_out}
    assert "no floating-point tensor" in left["pick:out"]
    assert "did not run" in left["never:out"]
    with pytest.raises(SiteError, match="no floating-point tensor"):
        _ = sonde.read(net, x, sites=["first", "pick"]).schema
    with pytest.raises(SiteError, match="did not run"):
        _ = sonde.read(net, x, sites="ne*").schema


@pytest.mark.truth("the mean over positions of the states that the encoder returns")
def test_a_state_as_long_as_it_is_wide_has_the_width_of_the_configuration():
    torch.manual_seed(5)
    config = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
        num_mel_bins=6, max_source_positions=16,
    )  # fmt: skip
    net, mel = WhisperEncoder(config).eval(), torch.randn(5, 6, 32)
    rows = next(iter(sonde.read(net, {"input_features": mel}))).rows
    assert list(rows) == ["layers.0:out", "layers.1:out"]
    with torch.no_grad():
        states = net(mel, output_hidden_states=True).hidden_states
    torch.testing.assert_close(rows["layers.0:out"], states[1].mean(1))
