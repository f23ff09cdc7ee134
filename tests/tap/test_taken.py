"""Rows that are made of copies after the forward: whose mask, whose memory, whose error."""

import gc
import weakref

import pytest
import torch
from torch import nn

from models import bert
from narrow import present
from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.tap import live_stream
from tap_inputs import Arrays, Texts, texts


class Shared(nn.Module):
    """One embedding for an encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(61, 4), nn.Linear(4, 4)

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        source = self.emb(input_ids).mean(1, keepdim=True)
        return self.out(self.emb(decoder_input_ids) + source)


@pytest.mark.truth("the embeddings of the source tokens")
@pytest.mark.parametrize("reducer", ["last", "tokens"])
def test_batches_that_differ_in_one_of_two_masks_are_not_reduced_together(reducer):
    torch.manual_seed(0)
    net = Shared().eval()
    targets = [[7, 8, 9, 10], [11, 12, 13, 14], [15, 16], *([17 + i, 18, 19, 20] for i in range(5))]
    sources = [[3 + i, 4, 5, 6] for i in range(8)]
    inputs = Texts(sources, batch_size=2, targets=targets, special=False)
    stream = live_stream(Model(net, task="seq2seq"), inputs, ["emb@0", "emb@all"], reducer)
    for batch, raw in zip(stream.batches(0, 8), inputs.batches(0, 8), strict=True):
        rows, each = batch.rows["emb@all:out"], net.emb(raw.kwargs["input_ids"]).detach()
        assert len(rows) == len(batch.example["emb@all:out"])
        if bool(present(raw.decoder_mask).all()):
            want = each[:, -1] if reducer == "last" else each.flatten(0, 1)
            torch.testing.assert_close(rows[: len(want)], want)


class Twice(nn.Module):
    """A layer that runs two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


def test_two_kinds_of_one_call_are_two_tensors():
    inputs = Arrays(torch.randn(6, 5, 4), batch_size=2)
    stream = live_stream(Model(Twice().eval()), inputs, ["layer@1", "layer@last"], "tokens")
    one, other = next(iter(stream)).rows.values()
    kept = other.clone()
    one.zero_()
    assert torch.equal(other, kept)


@pytest.mark.parametrize("name", ["", "|last", "|tokens"])
def test_rows_of_a_batch_are_apart_from_those_of_others(name):
    inputs = texts([6] * 40, batch_size=1)
    model = Model(bert(), task="encoder")
    stream = live_stream(model, inputs, reducer="mean", further=("last", "tokens"))
    key, batches = f"encoder.layer.0:out{name}", list(stream.batches(0, 40))
    one, other = batches[20].rows[key], batches[21].rows[key]
    assert one.untyped_storage().nbytes() <= 3 * one.nbytes  # three sites
    weight = torch.ones(one.shape[1], requires_grad=True)
    loss = (one @ weight).square().sum()
    other.sub_(1.0)
    loss.backward()
    want = 2 * one.T @ one @ torch.ones(one.shape[1])
    torch.testing.assert_close(weight.grad, want, rtol=1e-4, atol=1e-3)


class Headed(nn.Module):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def test_an_objective_may_call_what_is_read():
    net = Headed().eval()
    inputs = Arrays(torch.randn(6, 4), batch_size=2)

    def objective(output, batch):
        return output.logsumexp(1).sum() + net.head(torch.zeros(len(batch), 4)).sum()

    def first(sites):
        return next(iter(live_stream(Model(net), inputs, sites, objective=objective)))

    assert set(first(["body@0", "head@0"]).grad) == {"body@0:out", "head@0:out"}
    with pytest.raises(SiteError, match="ran 2 times"):
        first(["body", "head"])


class Fails(nn.Module):
    """A layer, and an error from a given forward on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(4, 4), -1

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise ValueError("enough")
        return self.layer(x)


@pytest.mark.slow
def test_a_forward_that_fails_leaves_no_copies_behind():
    net, seen = Fails().eval(), []

    class Watched(Arrays):
        def batches(self, start, stop):
            for batch in super().batches(start, stop):
                seen.extend(weakref.ref(x) for x in batch.args)
                yield batch

    stream = live_stream(Model(net), Watched(torch.randn(40, 5, 4), batch_size=1), "layer", "last")
    assert stream.schema
    seen.clear()
    gc.collect()
    gc.disable()
    try:
        net.left = 9
        with pytest.raises(ValueError, match="enough") as caught:
            list(stream.batches(0, 40))
        caught.value.__traceback__ = None
        del caught
        assert len(seen) > 8
        assert not [one for one in seen if one() is not None]
    finally:
        gc.enable()


class Counts(nn.Module):
    """An embedding whose padding is NaN, and how many forwards it made."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last, self.n = nn.Embedding(100, 4), nn.Identity(), 0

    def forward(self, input_ids, attention_mask):
        self.n += 1
        x = self.block(input_ids)
        return self.last(x.masked_fill(attention_mask[..., None] == 0, float("nan")))


def test_padding_that_is_no_number_costs_no_second_forward():
    net = Counts().eval()
    inputs = texts([5] * 12 + [9, 3, 3, 3], batch_size=4, special=False)
    stream = live_stream(Model(net, task="encoder"), inputs, "last", "mean", further=("tokens",))
    assert stream.schema
    net.n = 0
    batches = list(stream.batches(0, 16))
    assert net.n == len(batches) == 4
    assert all(bool(b.rows["last:out"].isfinite().all()) for b in batches)
