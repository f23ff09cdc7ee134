"""Token inputs run as they came; where texts are padded here, the sides are compared."""

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from models import gpt2, llama
from sonde.core.errors import SondeWarning
from sonde.data import open_inputs
from sonde.tap.streams.padding_sides import given_side

PADDED = {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1]}
WHOLE = {"input_ids": [7, 8, 9, 10], "attention_mask": [1, 1, 1, 1]}
RAGGED = [{"input_ids": list(range(3, 3 + n))} for n in (9, 4, 12, 7, 11)]


class Placed(nn.Module):
    """Learned places, a masked mean or the last state, and a flip where it is asked for."""

    def __init__(self, flips: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place = nn.Embedding(30, 8), nn.Embedding(16, 8)
        self.mix = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.flips = flips

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1]))
        if self.flips:
            h, attention_mask = h.flip(1), attention_mask.flip(1)
        h = self.mix(h)
        weight = attention_mask[..., None].to(h)
        return self.head((h * weight).sum(1) / weight.sum(1))


@pytest.mark.truth("the plain forward of the items as they are")
def test_items_with_a_mask_run_as_they_came():
    net = Placed().eval()
    (batch,) = sonde.read(net, [PADDED, WHOLE], sites="head")
    with torch.no_grad():
        expected = torch.cat([net(**_tensors(i)) for i in (PADDED, WHOLE)])
        stripped = net(torch.tensor([[5, 6]]), torch.ones(1, 2))
    assert float((stripped - expected[0]).abs().max()) > 0.05
    rows = batch.rows["head:out"][batch.order.argsort()]
    torch.testing.assert_close(rows, expected)
    assert batch.length is not None
    assert batch.length.tolist() == [2, 4]


def test_padding_is_part_of_an_item():
    """The same tokens in other places are other inputs."""
    other = {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0]}
    (batch,) = sonde.read(Placed().eval(), [PADDED, other], sites="head")
    assert len(set(batch.ids)) == 2
    assert float(batch.rows["head:out"].diff(dim=0).abs().max()) > 0.05


def test_a_mask_that_leaves_nothing_is_refused():
    item: dict[str, Any] = {"input_ids": [5, 6], "attention_mask": [0, 0]}
    with pytest.raises(sonde.SondeError, match="selects no token"):
        sonde.read(Placed(), [item])


def test_sides_that_differ_are_told_with_the_one_that_was_taken(caplog):
    with caplog.at_level(logging.WARNING, logger="sonde"):
        list(sonde.read(gpt2(), RAGGED, sites="blocks"))
    (said,) = [r.getMessage() for r in caplog.records if "padded" in r.getMessage()]
    assert "at transformer.h.0:out, states differ by" in said
    assert "padding on the right was used" in said


def test_sides_that_are_alike_are_not_spoken_of(caplog):
    with caplog.at_level(logging.WARNING, logger="sonde"):
        list(sonde.read(llama(), RAGGED, sites="blocks"))
    assert not [r for r in caplog.records if "padded" in r.getMessage()]


def test_tokens_that_forward_flips_are_told():
    with pytest.warns(SondeWarning, match=r"differs at mix.*the forward pass shifts the tokens"):
        list(sonde.read(Placed(flips=True).eval(), RAGGED, sites="mix", reducer="mean"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(sonde.read(Placed().eval(), RAGGED, sites="mix", reducer="mean"))


def _tensors(item: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([values]) for name, values in item.items()}


@pytest.mark.truth("the same texts alone, by the plain model")
def test_given_padding_is_compared_with_the_text_alone(caplog):
    net = gpt2()
    items = [PADDED, WHOLE, {"input_ids": [0, 5, 9, 12], "attention_mask": [0, 1, 1, 1]}]
    with caplog.at_level(logging.WARNING, logger="sonde"):
        (batch,) = sonde.read(net, items, sites="blocks.0", reducer="last")
    said = [r.getMessage() for r in caplog.records if "padding" in r.getMessage()]
    assert len(said) == 1
    assert "were read with their padding" in said[0]
    assert "was used" not in said[0]
    with torch.no_grad():
        given, alone = (
            net(**_tensors(i), output_hidden_states=True).hidden_states[1][0, -1]
            for i in (PADDED, {"input_ids": [5, 6], "attention_mask": [1, 1]})
        )
    row = batch.rows["transformer.h.0:out"][batch.order.argsort()][0]
    torch.testing.assert_close(row, given)
    assert float((given - alone).abs().max()) > 0.01
    caplog.clear()
    right = {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0]}
    placed = [i | {"position_ids": [0, 0, *range(len(i["input_ids"]) - 2)]} for i in items[:1]]
    with caplog.at_level(logging.WARNING, logger="sonde"):
        list(sonde.read(gpt2(), [right, WHOLE], sites="blocks.0"))
        list(sonde.read(gpt2(), placed, sites="blocks.0"))
    assert not [r for r in caplog.records if "padding" in r.getMessage()]


def test_the_side_is_that_of_the_padding_that_was_given():
    sides = [
        given_side(open_inputs(sonde.load(gpt2()), items))
        for items in ([WHOLE, PADDED], [{"input_ids": [5, 0], "attention_mask": [1, 0]}], RAGGED)
    ]
    assert sides == ["left", "right", None]
