"""Blocks that take (time, row, dim) and declare nothing: known by running, as many rows or not."""

import pytest
import torch
from torch import nn
from transformers import XLNetConfig, XLNetForSequenceClassification

import sonde
from sonde.core.edit import Scale
from sonde.core.errors import SiteError
from sonde.layers import Attention
from sonde.train import RateReduction

DIM = 8


class Block(nn.Module):
    """A block as in CLIP's first release: its attention alone declares that time comes first."""

    def __init__(self):
        super().__init__()
        self.attn, self.lin = nn.MultiheadAttention(DIM, 2), nn.Linear(DIM, DIM)

    def forward(self, x):
        x = x + self.attn(x, x, x)[0]
        return x + self.lin(x).relu()


class Own(nn.Module):
    """Two such blocks between a table and a head."""

    def __init__(self, least=1):
        super().__init__()
        self.table, self.head = nn.Embedding(16, DIM), nn.Linear(DIM, 5)
        self.blocks, self.least = nn.Sequential(Block(), Block()), least

    def forward(self, input_ids):
        if len(input_ids) < self.least:
            raise ValueError("too few rows")
        return self.head(self.blocks(self.table(input_ids).transpose(0, 1)).mean(0))


def built(kind):
    torch.manual_seed(0)
    if kind == "own":
        return Own().eval(), "blocks.0"
    sizes = {"d_model": DIM, "n_layer": 2, "n_head": 2, "d_inner": 12, "vocab_size": 16}
    config = XLNetConfig(**sizes, initializer_range=0.5)
    return XLNetForSequenceClassification(config).eval(), "transformer.layer.0"


def answers(net, ids):
    with torch.no_grad():
        found = net(input_ids=ids)
    return getattr(found, "logits", found)


def with_hook(net, site, hook, ids):
    handle = net.get_submodule(site).register_forward_hook(hook)
    try:
        return answers(net, ids)
    finally:
        handle.remove()


@pytest.mark.truth("own hooks that transpose by hand")
@pytest.mark.parametrize("kind", ["own", "xlnet"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 4), (1, 4)])
def test_rows_and_edits_of_blocks_that_take_time_first(kind, shape):
    net, site = built(kind)
    ids = torch.randint(16, shape, generator=torch.Generator().manual_seed(1))
    with sonde.Tap(net, site, "mean") as tap:
        answers(net, ids)
    seen = []
    with_hook(net, site, lambda _m, _a, o: seen.append(o if kind == "own" else o[0]), ids)
    mean = seen[0].mean(0)
    torch.testing.assert_close(tap.rows[f"{site}:out"], mean)
    if len(ids) > 1:
        label = torch.arange(len(ids)) % 2
        with sonde.training(net, {site: RateReduction()}, reducer="mean") as terms:
            net(input_ids=ids)
            found = terms.loss(label=label)
        torch.testing.assert_close(found, RateReduction()(mean, label))

    def last_scaled(_m, _a, output):
        x = (output if kind == "own" else output[0]).clone()
        x[-1] *= 0.3
        return x if kind == "own" else (x, *output[1:])

    with sonde.editing(net, Scale(0.3), site, where="last"):
        edited = answers(net, ids)
    torch.testing.assert_close(edited, with_hook(net, site, last_scaled, ids))
    torch.manual_seed(2)
    layer = Attention(DIM, 2)
    with torch.no_grad():
        for weight in layer.parameters():
            weight += torch.randn_like(weight)
    new = sonde.inserted(net, {site: layer})
    alone = torch.cat([answers(new, ids[i : i + 1]) for i in range(len(ids))])
    torch.testing.assert_close(answers(new, ids), alone)


def test_what_nothing_tells_is_refused():
    layer = Attention(DIM, 2)
    new = sonde.inserted(Own(least=2), {"blocks.0": layer})
    ids = torch.randint(16, (4, 4))
    with pytest.raises(SiteError, match=r"it is not known whether these are \(time, row, dim\)"):
        new(ids)
    new(ids[:3])
    new(ids)


def test_one_row_is_run_alone_once(monkeypatch):
    net, site = built("own")
    new, sizes = sonde.inserted(net, {site: Attention(DIM, 2)}), []
    plain = nn.Embedding.forward
    monkeypatch.setattr(
        nn.Embedding, "forward", lambda self, ids: sizes.append(len(ids)) or plain(self, ids)
    )
    new(torch.randint(16, (4, 4)))  # as many rows as tokens: sizes do not tell
    assert sorted(sizes) == [1, 4]
