"""Padding under whatever name the model has for its mask, boolean or added to scores."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde.core.edit import Scale
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.token_masks import MaskMeaning, real_tokens
from sonde.tap import Gate, Tap, live_stream
from sonde.tap.hooks.call import CallArguments
from tap_inputs import Arrays

LENGTHS = (5, 3, 4, 2)
REAL = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
MINUS = torch.zeros(4, 5).masked_fill(~REAL, float("-inf"))
FORMS = {
    "attention_mask": (REAL, REAL.long(), REAL.float(), MINUS),
    "key_padding_mask": (~REAL, MINUS),
    "src_key_padding_mask": (~REAL, MINUS),
    "padding_mask": (~REAL,),
    "src_mask": (REAL, ~REAL, MINUS),
    "mask": (REAL, ~REAL, REAL.float(), MINUS, REAL.long()),
}


def takes(name: str) -> Any:
    """Return a model whose mask has a name; it adds something at padding."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    forward = f"lambda self, x, {name}=None: self.head(self.body(x)).mean(1)"
    Net.forward = eval(forward)  # the name of an argument is what differs
    return Net().eval()


@pytest.mark.parametrize(("name", "form"), [(n, f) for n in FORMS for f in range(len(FORMS[n]))])
@pytest.mark.truth("the mean over the real steps, written out")
def test_padding_does_not_enter_the_mean_under_any_name(name, form):
    torch.manual_seed(0)
    net, x, mask = takes(name), torch.randn(4, 5, 3), FORMS[name][form]
    with torch.no_grad():
        states = net.body(x)
    want = torch.stack([s[:n].mean(0) for s, n in zip(states, LENGTHS, strict=True)])
    items = [{"x": x[i], name: mask[i]} for i in range(4)]
    (batch,) = sonde.read(net, items, sites="body", reducer="mean").batches(0, 4)
    torch.testing.assert_close(batch.rows["body:out"], want)
    with Tap(net, ["body"], "mean") as tap:
        net(x, **{name: mask})
    torch.testing.assert_close(tap.rows["body:out"], want)
    alone = sonde.read(net, items, sites="body", reducer="mean", batch_size=1)  # tells not so much
    rows = torch.cat([b.rows["body:out"] for b in alone])
    torch.testing.assert_close(rows, want)


def test_which_value_of_a_mask_is_padding_is_told_by_its_sides():
    with pytest.raises(InputError, match="under the name 'attention_mask'"):
        real_tokens("mask", torch.tensor([[True, False], [False, True]]))
    assert real_tokens("mask", REAL[1:2]).equal(REAL[1:2])
    for value in (True, False):
        assert bool(real_tokens("mask", torch.full((3, 4), value)).all())
    left = torch.tensor([[False, True], [True, True]])
    assert real_tokens("mask", left).equal(left)
    assert real_tokens("mask", ~left).equal(left)


SHORT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
"""Padded in all examples: of itself it may mean either."""
HALF = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()


@pytest.mark.parametrize("is_real", [True, False])
@pytest.mark.truth("the mean over the real steps, written out")
def test_a_mask_means_in_all_batches_what_it_meant_in_the_first(is_real):
    net, x = takes("mask"), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))

    def given(real: torch.Tensor) -> torch.Tensor:
        return real if is_real else ~real

    with torch.no_grad():
        kept = net.body(x) * SHORT[..., None]
    want = kept.sum(1) / SHORT.sum(1, keepdim=True)
    with Tap(net, ["body"], "mean") as tap:
        net(x, mask=given(HALF))
        net(x, mask=given(SHORT))
        torch.testing.assert_close(tap.rows["body:out"], want)
        with pytest.raises(InputError, match=r"'mask' to be (not )?zero at padding"):
            net(x, mask=given(~HALF))
    states = {0: HALF, 1: SHORT}
    items = [{"n": i, "k": k} for i in states for k in range(2)]
    model = Model(net, processor=lambda at: {"x": x[at[1]], "mask": given(states[at[0]][at[1]])})
    named = [{"x": [item["n"], item["k"]]} for item in items]
    rows = torch.cat(
        [b.rows["body:out"] for b in sonde.read(model, named, "body", "mean", batch_size=2)]
    )
    torch.testing.assert_close(rows[2:], want)


@pytest.mark.truth("the mean over the real steps, written out")
def test_a_guarded_call_reads_a_mask_that_is_added_to_scores():
    call = CallArguments(takes("attention_mask"), (), {"attention_mask": MINUS})
    assert call.mask is not None
    assert call.mask.equal(REAL)
    meaning = MaskMeaning()
    for given, real in ((~HALF, HALF), (~SHORT, SHORT)):
        call = CallArguments(takes("mask"), (), {"mask": given}, meaning=meaning)
        assert call.mask is not None
        assert call.mask.equal(real)


def test_several_lengths_without_a_mask_are_said_once(caplog):
    caplog.set_level(logging.WARNING, "sonde")
    net = takes("padding_mask")
    x = torch.randn(4, 5, 3) * REAL[..., None]
    for _ in range(2):
        list(sonde.read(net, [{"x": one} for one in x], sites="body"))
    assert [r.message for r in caplog.records].count(caplog.messages[0]) == 1
    assert "rows may contain padding" in caplog.text
    caplog.clear()
    other = takes("padding_mask")
    list(sonde.read(other, [{"x": one} for one in torch.randn(4, 5, 3)], sites="body"))
    assert "padding" not in caplog.text


class Placed(nn.Module):
    """Knows the places of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.arange(5.0)[:, None].expand(5, 3).clone())
        self.act = nn.Tanh()

    def forward(self, x, mask):
        return self.act(x + self.place)


@pytest.mark.parametrize("real", [REAL.flip(1), torch.tensor([[1, 0, 1, 1, 0]]).bool()])
@pytest.mark.truth("the model called by hand, and the mean over the real steps, written out")
def test_padding_stays_where_it_is_for_a_module_of_somebodys_own(real):
    net, real = Placed().eval(), real.expand(4, 5)
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    items = [{"x": a, "mask": b} for a, b in zip(x, real, strict=True)]
    rows = torch.cat([b.rows["act:out"] for b in sonde.read(net, items, "act", "mean")])
    with torch.no_grad():
        kept = net(x, real) * real[..., None]
    torch.testing.assert_close(rows, kept.sum(1) / real.sum(1, keepdim=True))


@pytest.mark.truth("the mean over the real steps, written out")
def test_a_mask_counts_in_a_batch_of_as_many_examples_as_steps():
    net = takes("mask")
    x = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(0))
    real = torch.arange(5) < torch.tensor([5, 3, 4, 2, 5])[:, None]
    items = [{"x": a, "mask": b} for a, b in zip(x, real, strict=True)]
    (batch,) = sonde.read(net, items, "body", "mean", batch_size=5)
    with torch.no_grad():
        kept = net.body(x) * real[..., None]
    expected = kept.sum(1) / real.sum(1, keepdim=True)
    torch.testing.assert_close(batch.rows["body:out"], expected)


class Spoken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=9)
        self.words = nn.Embedding(10, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.words(input_ids)


@pytest.mark.parametrize(("last", "said"), [(9, True), (0, False)])
def test_padding_is_what_the_configuration_calls_so(caplog, last, said):
    caplog.set_level(logging.WARNING, "sonde")
    ids = torch.tensor([[1, 2, 3], [4, 5, last]])
    list(live_stream(Model(Spoken().eval(), config=Spoken().config), Arrays(ids, "input_ids")))
    assert ("the id 9" in caplog.text) is said


T = 5
CAUSAL = torch.ones(T, T).tril().bool()
PAIRS = {
    "keys": REAL[:, None],
    "heads": REAL[:, None, None].float(),
    "added": MINUS[:, None, None],
    "causal": REAL[:, None] & CAUSAL,
    "both": (REAL[:, None] & REAL[:, :, None])[:, None].long(),
    "none hidden": (REAL.flip(1)[:, None] & CAUSAL) | ~REAL.flip(1)[:, :, None],
}


class Ones(nn.Module):
    """A loss that keeps what it is given."""

    def forward(self, x):
        self.rows = x.detach()
        return x.sum()


class Third:
    """Scores rows by their third unit."""

    def score(self, x):
        self.rows = x
        return x[:, 2]


def seen_by_all(net, x, name, mask):
    """Return the mean rows of a tap, a loss and a gate, and which tokens an edit touches."""
    loss, score = Ones(), Third()
    with Tap(net, ["body"], "mean") as tap:
        net(x, **{name: mask})
    with sonde.training(net, {"body": loss}) as terms:
        net(x, **{name: mask})
        terms.loss()
    gate = Gate(score, -1e9, "body")
    with sonde.editing(net, Scale(0.0), "body", gate=gate), Tap(net, ["body"]) as edited:
        net(x, **{name: mask})
    touched = (edited.rows["body:out"] == 0).all(2)
    return [tap.rows["body:out"], loss.rows, score.rows], touched


@pytest.mark.truth("the mean over the real steps, written out")
@pytest.mark.parametrize("kind", PAIRS)
def test_a_mask_of_pairs_leaves_padding_out(kind):
    torch.manual_seed(0)
    net, x, mask = takes("attention_mask"), torch.randn(4, T, 3), PAIRS[kind]
    real = REAL.flip(1) if kind == "none hidden" else REAL
    with torch.no_grad():
        want = (net.body(x) * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    found, touched = seen_by_all(net, x, "attention_mask", mask)
    items = [{"x": a, "attention_mask": b} for a, b in zip(x, mask, strict=True)]
    (batch,) = sonde.read(net, items, "body", "mean").batches(0, 4)
    for rows in (*found, batch.rows["body:out"]):
        torch.testing.assert_close(rows, want)
    assert torch.equal(touched, real)


@pytest.mark.truth("the mean over the real steps, written out")
@pytest.mark.parametrize("name", ["mask", "src_mask", "input_mask"])
def test_a_square_mask_is_padding_or_not_and_never_guessed(name):
    torch.manual_seed(0)
    net, x = takes(name), torch.randn(T, T, 3)
    real = torch.arange(T) < torch.tensor([5, 3, 4, 2, 5])[:, None]
    band = (torch.arange(T)[:, None] - torch.arange(T)).abs() < 2
    with torch.no_grad():
        states = net.body(x)
    for mask in (real, ~real, torch.zeros(T, T).masked_fill(~real, -torch.inf)):
        found, touched = seen_by_all(net, x, name, mask)
        for rows in found:
            torch.testing.assert_close(
                rows, (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
            )
        assert torch.equal(touched, real)
    for mask in (CAUSAL, ~CAUSAL, CAUSAL.T, band):
        found, touched = seen_by_all(net, x, name, mask)
        for rows in found:
            torch.testing.assert_close(rows, states.mean(1))
        assert bool(touched.all())
    prefix = CAUSAL | (torch.arange(T) < 3)
    with Tap(net, ["body"], "mean") as tap:
        with pytest.raises(InputError, match=r"may also mean which token attends to which"):
            net(x, **{name: prefix})
        net(x[:4], **{name: prefix})  # four examples of five tokens: not padding
        net(x, **{name: prefix})
        torch.testing.assert_close(tap.rows["body:out"], states.mean(1))
    other = torch.arange(T) < torch.tensor([3, 3, 3, 4, 5])[:, None]  # the same as the prefix
    with Tap(net, ["body"], "mean") as tap:
        net(x[1:], **{name: other[1:]})  # an oblong one is padding
        net(x, **{name: other})
        want = (states * other[..., None]).sum(1) / other.sum(1, keepdim=True)
        torch.testing.assert_close(tap.rows["body:out"], want)
