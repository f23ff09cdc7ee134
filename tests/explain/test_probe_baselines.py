"""Probes beside what needs nothing learned, on a layer whose meaning was written by hand."""

import pytest
import torch
from torch import nn

import models
import sonde
from sonde.core import InputError
from sonde.explain import Probe, ProbeBaselines

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(400, 2, generator=DRAW)
LABEL = (X[:, 0] * X[:, 1] > 0).long()


def written() -> nn.Sequential:
    """Return a layer of |a + b| and |a - b| in halves: the larger one tells whether signs agree."""
    first = nn.Linear(2, 4, bias=False)
    first.weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.truth("signs that agree: no line in the plane tells it, sums of two halves do")
def test_a_label_that_the_layer_makes_stands_beside_its_baselines():
    net = written()
    before = [p.clone() for p in net.parameters()]
    items = [{"x": x, "label": int(y)} for x, y in zip(X, LABEL, strict=True)]
    stream = sonde.read(net, items, sites="1")
    found = ProbeBaselines(seed=3).fit(stream)
    (row,) = found.table().to_pylist()
    assert found.range == (0.0, 1.0)
    assert row["accuracy"] > 0.95
    assert row["input"] < 0.65
    other = written()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for layer in other.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        rows = other[1](other[0](X))
    assert row["redrawn"] == pytest.approx(float(Probe().fit(rows, label=LABEL)), abs=0.03)
    best = max(row["input"], row["redrawn"], row["commonest"])
    assert row["gain"] == pytest.approx(row["accuracy"] - best)
    assert row["selectivity"] == pytest.approx(row["accuracy"] - row["control"])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    lines = str(found).splitlines()
    assert lines[1].startswith("1:out")
    assert all(word in lines[0] for word in ("input", "redrawn", "control", "selectivity", "gain"))


def test_tokens_are_compared_with_their_embedding():
    ids = torch.randint(3, models.VOCABULARY, (40, 2), generator=DRAW)
    items = [{"input_ids": row, "label": int(row[0] > 30)} for row in ids]
    stream = sonde.read(models.gpt2(), items, sites="blocks", reducer="tokens")
    found = ProbeBaselines().fit(stream)
    assert found.conventions["input"] == "transformer.wte:out"
    assert found.conventions["types"] == "position"
    assert len(found.sites) == len(found.redrawn) == 3


def test_rows_without_a_model_are_refused():
    with pytest.raises(InputError, match="stream of a live model"):
        ProbeBaselines().fit(sonde.Stream.of({"a": X}, label=LABEL))


class Positions(nn.Module):
    """Looks its positions up before its tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pos, self.words, self.last = nn.Embedding(4, 6), nn.Embedding(60, 6), nn.Linear(6, 2)

    def forward(self, input_ids):
        there = self.pos(torch.arange(input_ids.shape[1]).expand_as(input_ids))
        return self.last((there + self.words(input_ids)).tanh().sum(1))


class Sum(nn.Module):
    """Reads two inputs by a layer each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 2), nn.Linear(3, 2)

    def forward(self, left, right):
        return self.a(left) - self.b(right).tanh()


def test_the_input_is_the_words_and_never_one_of_two_inputs():
    ids = torch.randint(3, 60, (40, 3), generator=DRAW)
    items = [{"input_ids": row, "label": int(row[0] > 30)} for row in ids]
    found = ProbeBaselines().fit(sonde.read(Positions(), items, sites="words", reducer="tokens"))
    assert found.conventions["input"] == "words:out"
    pairs = [
        {"left": x, "right": torch.randn(3, generator=DRAW), "label": int(y)}
        for x, y in zip(X, LABEL, strict=True)
    ]
    both = ProbeBaselines().fit(sonde.read(Sum(), pairs[:60], sites="b"))
    assert both.conventions["input"] == "none: several inputs"
    assert both.at_input != both.at_input
    assert both.gain.isfinite().all()
