"""Several tokens ahead: a loop by hand, the model's own loss, and a task of three tokens ahead."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import silu
from transformers import GPT2Config, GPT2LMHeadModel

import sonde
from sonde.core import InputError, ShapeError
from sonde.train import NextTokens

DRAW = {"dtype": torch.float64}


def a_loss(**parameters):
    torch.manual_seed(3)
    loss = NextTokens(4, classes=5, **parameters).double()
    nn.init.normal_(loss.maps)
    return loss


@pytest.mark.truth("a loop over rows, positions and distances")
def test_padding_and_labels_below_zero_by_hand():
    loss, x = a_loss(n=3, first=2), torch.randn(3, 6, 4, **DRAW)
    token = torch.randint(5, (3, 6))
    token[0, 3] = -100
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    values = []
    for k, apart in enumerate((2, 3, 4)):
        rows = []
        for i in range(3):
            each = []
            for t in range(6 - apart):
                if real[i, t] and real[i, t + apart] and token[i, t + apart] >= 0:
                    h = x[i, t] + loss.maps[k] @ silu(x[i, t])
                    each.append(-(loss.own.weight @ h).log_softmax(0)[token[i, t + apart]])
            if each:
                rows.append(sum(each) / len(each))
        values.append(sum(rows) / len(rows))
    torch.testing.assert_close(loss(x, token, real), sum(values) / 3)
    hidden = x.masked_fill(~real[..., None], 7.0)
    assert torch.equal(loss(x, token, real), loss(hidden, token.masked_fill(~real, 4), real))
    ahead = loss.ahead(x)
    assert ahead.shape == (3, 6, 3, 5)
    h = x[2, 1] + loss.maps[2] @ silu(x[2, 1])
    torch.testing.assert_close(ahead[2, 1, 2], loss.own.weight @ h)


def test_rows_too_short_add_nothing():
    loss = a_loss(n=2, first=3)
    value = loss(torch.randn(2, 3, 4, **DRAW), torch.zeros(2, 3).long())
    value.backward()
    assert value == 0
    assert not loss.maps.grad.any()


@pytest.mark.truth("the loss of transformers, one token ahead")
def test_one_ahead_is_the_model_s_own_loss():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=9, vocab_size=11)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(1, 11, (3, 7))
    one = NextTokens(8, n=1, first=1, head=model.lm_head)
    with sonde.training(model, {"transformer.ln_f": one}) as terms:
        said = model(ids, labels=ids).loss
        value = terms.loss(token=ids)
    torch.testing.assert_close(value, said, rtol=1e-5, atol=1e-6)
    (own,) = torch.autograd.grad(said, model.lm_head.weight, retain_graph=True)
    (found,) = torch.autograd.grad(value, model.lm_head.weight, retain_graph=True)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)
    assert [*one.parameters()] == [one.maps]
    model.to(torch.bfloat16)
    assert one(torch.randn(2, 4, 8, dtype=torch.bfloat16), ids[:2, :4]).dtype == torch.float32


@pytest.mark.truth("tokens that follow from the one three before, and from no other")
def test_what_can_be_said_ahead_is_learned():
    torch.manual_seed(1)
    order, token = torch.randperm(5), torch.randint(5, (64, 12))
    for t in range(3, 12):
        token[:, t] = order[token[:, t - 3]]
    x, loss = torch.eye(5)[token], NextTokens(5, classes=5)
    optimiser = torch.optim.Adam(loss.parameters(), 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        loss(x, token).backward()
        optimiser.step()
    two, three, four = (loss.ahead(x)[:, : 12 - k, k - 2].log_softmax(-1) for k in (2, 3, 4))
    for far, said in ((2, two), (4, four)):
        surprise = -said.gather(2, token[:, far:, None]).mean().item()
        assert surprise == pytest.approx(math.log(5), abs=0.1)
    assert torch.equal(three.argmax(-1), token[:, 3:])


def test_what_cannot_be_meant_is_refused():
    for given in ({}, {"classes": 3, "head": nn.Linear(4, 3)}, {"classes": 3, "n": 0}):
        with pytest.raises(InputError):
            NextTokens(4, **given)
    with pytest.raises(ShapeError):
        a_loss()(torch.randn(6, 4, **DRAW), torch.zeros(6).long())
