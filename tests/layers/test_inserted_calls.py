"""Inserted layers in models as people call them: masks, time first, threads, generation."""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sonde
from sonde.core import InputError, StateError
from sonde.core.edit import Scale
from sonde.layers import (
    Adapter,
    Attention,
    ConditionalNorm,
    Experts,
    Hopfield,
    LinearAttention,
    StateGraph,
    StateQueue,
    UnitGate,
    conditioned,
)
from sonde.tap.hooks.running import running_calls

DIM, N, LENGTH = 8, 4, 6
LENGTHS = (6, 3, 4, 2)
REAL = torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]
IDS = torch.randint(3, 16, (N, LENGTH), generator=torch.Generator().manual_seed(0))
LOOKING: dict[str, Any] = {
    "attention": lambda: Attention(DIM, 2),
    "linear": lambda: LinearAttention(DIM, 2, chunk=2),
    "filter": lambda: StateQueue(DIM, 2),
    "queue": lambda: StateQueue(DIM, 3, read="attention"),
    "graph": lambda: StateGraph(DIM, k=2),
}


def moved(layer: Any) -> Any:
    """Return the layer in float64 with random parameters."""
    generator = torch.Generator().manual_seed(4)
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return layer


class Texts(nn.Module):
    """A model of one's own, batch first outside: a torch module over embedded ids."""

    def __init__(self, inner: nn.Module, time_first: bool):
        super().__init__()
        self.table, self.inner = nn.Embedding(16, DIM), inner
        self.time_first, self.head = time_first, nn.Linear(DIM, DIM)

    def forward(self, ids, mask=None):
        x = self.table(ids)
        x = x.transpose(0, 1) if self.time_first else x
        if isinstance(self.inner, nn.TransformerEncoder):
            x = self.inner(x, src_key_padding_mask=None if mask is None else mask == 0)
        elif isinstance(self.inner, nn.RNNBase):
            x = self.inner(x)[0]
        x = self.head(x)
        return x.transpose(0, 1) if self.time_first else x


def encoder(batch_first: bool) -> nn.Module:
    one = nn.TransformerEncoderLayer(DIM, 2, 16, 0.0, batch_first=batch_first)
    return nn.TransformerEncoder(one, 2, enable_nested_tensor=False)


def texts(kind: str, batch_first: bool) -> Texts:
    torch.manual_seed(5)
    inner = (
        encoder(batch_first) if kind == "encoder" else nn.LSTM(DIM, DIM, batch_first=batch_first)
    )
    return Texts(inner, not batch_first).double().eval()


@torch.no_grad()
def assert_alone(call, tolerance=1e-10):
    """Check that each row of a padded batch gives what it gives alone."""
    whole = call(IDS, REAL)
    for i, n in enumerate(LENGTHS):
        gap = (whole[i, :n] - call(IDS[i : i + 1, :n], None)[0]).abs().max()
        assert gap < tolerance, f"row {i} moved by {float(gap):.3g}"


@pytest.mark.truth("one row at a time")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("kind", "site"), [("encoder", "inner.layers.0"), ("lstm", "inner")])
@pytest.mark.parametrize("looking", LOOKING)
def test_a_padded_batch_of_a_torch_model_is_its_rows(kind, site, batch_first, looking):
    new = sonde.inserted(texts(kind, batch_first), {site: moved(LOOKING[looking]())})
    assert_alone(lambda ids, mask: new(ids, mask))  # by position, true at real tokens
    assert_alone(lambda ids, mask: new(ids, mask=None if mask is None else mask.float()))


@pytest.mark.truth("one row at a time")
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_padding_mask_of_torch_reaches_a_layer(batch_first):
    torch.manual_seed(6)
    new = sonde.inserted(
        encoder(batch_first).double().eval(), {"layers.0": moved(Attention(DIM, 2))}
    )
    table = torch.randn(16, DIM, dtype=torch.float64)

    def call(ids, real, added):
        x = table[ids] if batch_first else table[ids].transpose(0, 1)
        padded = None if real is None else ~real
        if added and padded is not None:
            padded = torch.zeros(padded.shape, dtype=x.dtype).masked_fill(padded, -torch.inf)
        y = new(x, None, padded)
        return y if batch_first else y.transpose(0, 1)

    assert_alone(lambda ids, real: call(ids, real, False))
    assert_alone(lambda ids, real: call(ids, real, True))


@pytest.fixture(scope="module")
def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=16, hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config).double().eval()


class Wrapped(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, ids, mask=None):
        return self.body(ids, mask).last_hidden_state


@pytest.mark.truth("one row at a time")
def test_a_mask_reaches_a_layer_however_the_model_is_called(bert):
    new = sonde.inserted(bert, {"bert.encoder.layer.0": moved(Attention(DIM, 2))})
    part = new.bert
    assert_alone(lambda ids, mask: part(ids, mask).last_hidden_state)
    assert_alone(lambda ids, mask: part(ids, attention_mask=mask).last_hidden_state)
    wrapped = sonde.inserted(Wrapped(bert.bert), {"body.encoder.layer.0": moved(Attention(DIM, 2))})
    assert_alone(lambda ids, mask: wrapped(ids, None if mask is None else mask.long()))


def test_no_mask_is_kept_and_threads_have_their_own(bert):
    new = sonde.inserted(bert, {"bert.encoder.layer.0": moved(Attention(DIM, 2))})
    masks = [REAL[torch.randperm(N, generator=torch.Generator().manual_seed(i))] for i in range(12)]
    with torch.no_grad():
        plain = new.bert(IDS).last_hidden_state
        want = [new(IDS, attention_mask=mask).logits for mask in masks]
        assert torch.equal(new.bert(IDS).last_hidden_state, plain)
        for kind in (RuntimeError, KeyboardInterrupt):

            def fail(*_, kind=kind):
                raise kind

            hook = new.bert.encoder.layer[1].register_forward_hook(fail)
            with pytest.raises(kind):
                new(IDS, attention_mask=REAL)
            hook.remove()
            assert torch.equal(new.bert(IDS).last_hidden_state, plain)
        assert not running_calls()

    @torch.no_grad()
    def run(mask):
        return new(IDS, attention_mask=mask).logits

    with ThreadPoolExecutor(4) as workers:
        for found, expected in zip(workers.map(run, masks), want, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.truth("one row at a time")
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_encoder_and_decoder_have_masks_of_their_own(side):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(8)
    model = T5ForConditionalGeneration(
        T5Config(d_model=DIM, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=16)
    )
    new = sonde.inserted(model.double().eval(), {f"{side}.block.0": moved(Attention(DIM, 2))})
    source = REAL.flip(0)

    def call(ids, mask):
        if side == "encoder":
            found = new(ids, mask, decoder_input_ids=ids[:, :1])
            return found.encoder_last_hidden_state
        at = slice(None) if mask is not None else slice(*next(
            (i, i + 1) for i in range(N) if torch.equal(IDS[i, : ids.shape[1]], ids[0])
        ))  # fmt: skip
        return new(IDS[at], source[at], decoder_input_ids=ids, decoder_attention_mask=mask).logits

    assert_alone(call)


def test_a_checkpointed_part_has_its_mask_in_the_backward_pass():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.first, self.second = (
                nn.Embedding(16, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM),
            )  # fmt: skip
            self.reentrant: Any = None

        def forward(self, ids, mask):
            def both(x):
                return self.second(torch.tanh(self.first(x)))

            x = self.table(ids)
            if self.reentrant is None:
                return both(x)
            return checkpoint(both, x, use_reentrant=self.reentrant)

    torch.manual_seed(9)
    net = Part().double()

    def gradient(model):
        model.zero_grad()
        loss = model(IDS, REAL)[REAL].square().sum() + model(IDS[:2], REAL[:2].flip(0)).sum()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    new = sonde.inserted(net, {"first": moved(Attention(DIM, 2))})
    plain = gradient(new)
    for new.reentrant in (False, True):
        torch.testing.assert_close(gradient(new), plain)
    behind = sonde.inserted(net, {"second": moved(Attention(DIM, 2))})
    behind.reentrant = False  # what the site was given is made anew too
    with pytest.raises(StateError, match=r"recomputed in the backward pass"):
        gradient(behind)


@pytest.mark.truth("the layer on channels last")
@pytest.mark.parametrize("layer", [UnitGate, Adapter, Experts, ConditionalNorm])
def test_units_of_a_convolution_are_its_channels(layer):
    torch.manual_seed(10)
    net = nn.Sequential(nn.Conv2d(3, DIM, 3, padding=1), nn.BatchNorm2d(DIM)).double().eval()
    more = {Adapter: {"width": 3}, ConditionalNorm: {"condition": 2, "norm": "none"}}
    own = moved(layer(DIM, **more.get(layer, {})))
    new = sonde.inserted(net, {"0": own})
    x, c = torch.randn(2, 3, 5, DIM, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)

    def found():
        if layer is not ConditionalNorm:
            return new(x)
        with conditioned(new, c):
            return new(x)

    states = net[0](x).movedim(1, -1)
    states = own(states, c) if layer is ConditionalNorm else own(states)
    torch.testing.assert_close(found(), net[1](states.movedim(-1, 1)))


def test_what_is_not_known_is_refused():
    net = texts("lstm", batch_first=False)
    behind = sonde.inserted(net, {"head": moved(Attention(DIM, 2))})
    square = behind(IDS[:, :N], REAL[:, :N])  # as many rows as tokens
    torch.testing.assert_close(square[1, :3], behind(IDS[1:2, :3])[0])
    assert_alone(lambda ids, mask: behind(ids, mask))
    maps = nn.Sequential(nn.Conv2d(3, DIM, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * DIM**2, 4))
    gated = sonde.inserted(maps, {"1": UnitGate(DIM)})  # channels, though a map is as wide
    assert gated(torch.randn(2, 3, 5, DIM)).shape == (2, 4)


@pytest.mark.truth("each text alone, without and with a mask of ones")
def test_a_mask_that_the_model_makes_may_be_true_where_a_token_must_not_look():
    from transformers import MptConfig, MptForCausalLM

    torch.manual_seed(6)
    config = MptConfig(d_model=DIM, n_heads=2, n_layers=2, max_seq_len=16, vocab_size=16)
    new = sonde.inserted(
        MptForCausalLM(config).eval(), {"transformer.blocks.0": moved(Attention(DIM, 2))}
    )
    with torch.no_grad():
        whole = new(IDS, attention_mask=REAL.long()).logits
        for i, n in enumerate(LENGTHS):
            ids = IDS[i : i + 1, :n]
            torch.testing.assert_close(new(ids).logits[0], whole[i, :n])
            told = new(ids, attention_mask=torch.ones_like(ids)).logits
            torch.testing.assert_close(told[0], whole[i, :n])


@pytest.mark.truth("the mask of rank 2")
def test_masks_of_pairs_of_tokens():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(16, DIM), nn.Linear(DIM, 2)

        def forward(self, ids, attention_mask=None):
            return self.head(self.table(ids))

    torch.manual_seed(11)
    new = sonde.inserted(Pairs().double(), {"table": moved(Attention(DIM, 2))})
    want, whole = new(IDS, REAL)[REAL], REAL[:, None].expand(-1, LENGTH, -1)
    causal = whole & torch.ones(LENGTH, LENGTH).tril().bool()
    for mask in (whole, causal, REAL[:, None], whole[:, None].float(), causal.long()):
        torch.testing.assert_close(new(IDS, mask)[REAL], want)
    packed = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).expand(N, -1, -1)
    with pytest.raises(InputError, match=r"lets tokens of a row see different tokens"):
        new(IDS, packed)
    with pytest.raises(InputError, match=r"for each of the \(4, 5\) tokens of the mask"):
        new(IDS, REAL[:, :5])
    layer = Attention(DIM, 2)
    with pytest.raises(sonde.ShapeError, match=r"expected a mask of shape \(4, 6\)"):
        layer(torch.randn(N, LENGTH, DIM), mask=whole)


@pytest.mark.parametrize("looking", LOOKING)
def test_nothing_that_stands_at_padding_reaches_a_token(looking):
    layer = moved(LOOKING[looking]())
    x = torch.randn(N, LENGTH, DIM, dtype=torch.float64)
    broken = x.masked_fill(~REAL[..., None], torch.nan)
    found = layer(broken, mask=REAL)
    torch.testing.assert_close(found[REAL], layer(x, mask=REAL)[REAL])
    assert found[~REAL].isnan().all()


@pytest.mark.essential
@pytest.mark.truth("full passes without a cache")
@pytest.mark.parametrize("looking", [*LOOKING, "adapter", "hopfield"])
def test_generation_is_that_of_full_passes(looking, gpt, caplog):
    own = {"adapter": lambda: Adapter(DIM, 3), "hopfield": lambda: Hopfield(DIM, "lookup", 3)}
    layer = moved({**LOOKING, **own}[looking]())
    with caplog.at_level(logging.WARNING, "sonde"):
        new = sonde.inserted(gpt, {"transformer.h.0": layer})
    told = "runs without a key-value cache" in caplog.text
    assert told == (looking in LOOKING) == (new.generation_config.use_cache is False)
    for real in (torch.ones_like(REAL), REAL.flip(1)):
        ids, mask = IDS, real.long()
        for _ in range(5):
            with torch.no_grad():
                place = (mask.cumsum(1) - 1).clamp(min=0)
                out = new(ids, attention_mask=mask, position_ids=place, use_cache=False).logits
            ids = torch.cat([ids, out[:, -1:].argmax(-1)], 1)
            mask = torch.cat([mask, mask.new_ones(N, 1)], 1)
        known: dict[str, Any] = {"attention_mask": real.long(), "max_new_tokens": 5}
        assert torch.equal(new.generate(IDS, do_sample=False, **known), ids)
    if told:
        with pytest.raises(InputError, match=r"continues after 6 cached tokens"):
            new.generate(IDS, max_new_tokens=2, use_cache=True)
        assert sonde.removed(new).generation_config.use_cache


@pytest.fixture(scope="module")
def gpt():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(12)
    config = GPT2Config(
        vocab_size=16, n_embd=DIM, n_head=2, n_layer=2, n_positions=32, bos_token_id=1,
        eos_token_id=None, pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


@pytest.mark.truth("the same model with batch_first=True")
@pytest.mark.parametrize(("kind", "site"), [("encoder", "inner.layers.1"), ("lstm", "inner")])
def test_time_first_is_read_and_edited_as_batch_first(kind, site):
    late, early = texts(kind, batch_first=False), texts(kind, batch_first=True)
    edit = moved(Attention(DIM, 2)).as_edit()
    early.load_state_dict(late.state_dict())
    for ids in (IDS, IDS[:, :N]):  # as many tokens as rows, too
        real = REAL[:, : ids.shape[1]]
        found = []
        for net in (late, early):
            with sonde.Tap(net, [site], "mean") as tap, torch.no_grad():
                net(ids, real)
            edited = [tap.rows[f"{site}:out"]]
            for where in ("all", "last"):
                with sonde.editing(net, Scale(0.3), site, where=where), torch.no_grad():
                    edited.append(net(ids, real)[real])
            with sonde.editing(net, edit, site), torch.no_grad():
                edited.append(net(ids, real)[real])
            found.append(edited)
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


def test_a_copy_has_its_own_calls(bert):
    new = sonde.inserted(bert, {"bert.encoder.layer.0": moved(Attention(DIM, 2))})
    again = copy.deepcopy(new)
    with torch.no_grad():
        want = new(IDS, attention_mask=REAL).logits
        assert torch.equal(again(IDS, attention_mask=REAL).logits, want)
        plain = sonde.removed(again)
        assert torch.equal(
            plain(IDS, attention_mask=REAL).logits, bert(IDS, attention_mask=REAL).logits
        )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


@pytest.mark.slow
def test_an_exported_model_takes_other_masks(bert):
    new = sonde.inserted(bert, {"bert.encoder.layer.0": moved(Attention(DIM, 2))})
    with torch.no_grad():
        made = torch.export.export(new, (IDS, REAL.long())).module()
        for mask in (REAL.long(), REAL.flip(1).long()):
            torch.testing.assert_close(made(IDS, mask).logits, new(IDS, mask).logits)
