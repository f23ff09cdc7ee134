"""Inputs that are the same in all rows, in models of several tensors."""

import pytest
import torch
from torch import Tensor, nn

from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from findings._tables import bundled
from lm_twin_case import TEXTS, twin
from sonde.findings.codes.snd083 import SND083
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.evidence.inputs.idle_tensors import IdleTensors, find_idle_tensors
from sonde.findings.evidence.inputs.input_table import InputTable, input_table
from sonde.findings.evidence.record import Evidence
from sonde.run.reading.read import read
from sonde.tap import LiveStream


class Several(nn.Module):
    """A table, a category, a series with padding, and an image, joined."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.codes, self.tokens = nn.Embedding(40, 4), nn.Embedding(9, 4)
        self.table, self.image = nn.Linear(13, 4), nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, table: Tensor, codes: Tensor, tokens: Tensor, mask: Tensor, image: Tensor):
        real = mask[..., None].float()
        text = (self.tokens(tokens) * real).sum(1) / real.sum(1)
        parts = [self.table(table), self.codes(codes).mean(1), text, self.image(image).mean((2, 3))]
        return self.head(torch.cat(parts, 1))


def items(n: int = 60) -> list[dict[str, Tensor]]:
    x, _, _ = bundled("wine")
    torch.manual_seed(1)
    found = []
    for i in range(n):
        length = 3 + i % 4
        tokens = torch.where(torch.arange(6) < length, torch.randint(1, 9, (6,)), 0)
        codes = torch.stack([torch.randint(0, k, ()) for k in (2, 5, 40)])
        found.append({"table": torch.tensor(x[i]).float(), "codes": codes, "tokens": tokens,
                      "mask": (tokens > 0), "image": torch.rand(2, 4, 4)})  # fmt: skip
    return found


def stream_of(rows: list[dict[str, Tensor]]) -> LiveStream:
    stream = read(Several().eval(), rows, sites="head")
    assert isinstance(stream, LiveStream)
    return stream


def seeing(found: IdleTensors | str) -> Evidence:
    return evidence_of(torch.randn(30, 4)).having({find_idle_tensors: found})


def _set(name: str, change) -> list[dict[str, Tensor]]:
    return [{**row, name: change(row[name].clone())} for row in items()]


def _stuck(x: Tensor, i: int) -> Tensor:
    x[i] = 1
    return x


FAULTS = {
    "no image": (lambda: _set("image", torch.zeros_like), "error", "Input 'image' is 0 everywhere"),
    "one table": (lambda: _set("table", lambda _: torch.arange(13.0)), "warning",
                  "Input 'table' is the same in all 60 rows"),
    "a channel": (lambda: _set("image", lambda x: _stuck(x, 1)), "warning",
                  "Channel 1 of input 'image' is 1 in all 60 rows"),
    "a category": (lambda: _set("codes", lambda x: _stuck(x, 1)), "warning",
                   "Column 1 of input 'codes' is 1"),
    "the mask": (lambda: _set("mask", torch.ones_like), "warning",
                 "Input 'mask' marks no padding in all 60 rows, but 'tokens' ends in zeros"),
}  # fmt: skip


@pytest.mark.truth("the inputs that were overwritten")
@pytest.mark.parametrize("name", FAULTS)
def test_inputs_without_information_are_named(name: str) -> None:
    rows, level, words = FAULTS[name]
    found = find_idle_tensors(stream_of(rows()), evidence_of(torch.randn(30, 4)))
    assert isinstance(found, IdleTensors)
    assert len(found.found) == 1
    finding = assert_raised(SND083().check(seeing(found)), level)
    assert finding.sentence.startswith(words)


def test_inputs_that_change_are_clear() -> None:
    found = find_idle_tensors(stream_of(items()), evidence_of(torch.randn(30, 4)))
    assert_clear(SND083().check(seeing(found)))


@pytest.mark.slow
def test_texts_that_begin_with_the_same_tokens_are_no_idle_columns() -> None:
    stream = read(
        twin(), [f"<|im_start|>user\nThe {i} of {text}" for i in range(8) for text in TEXTS]
    )
    assert isinstance(stream, LiveStream)
    found = find_idle_tensors(stream, evidence_of(torch.randn(30, 4)))
    assert isinstance(found, IdleTensors)
    assert not found.found


@pytest.mark.truth("the numbers of the two tensors")
def test_a_table_beside_other_inputs_is_a_table() -> None:
    stream = stream_of(items())
    table = input_table(stream, data_evidence(stream, "data", False))
    assert isinstance(table, InputTable)
    assert table.names[:2] == ("column 0 of table", "column 1 of table")
    x, _, _ = bundled("wine")
    assert table.values == pytest.approx(x[:60], rel=1e-6)


@pytest.mark.truth("a column of drawn numbers with missing ones: no value is everywhere")
def test_missing_values_make_no_constant() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=draw)
    x[torch.rand(60, generator=draw) < 0.2, 2] = torch.nan

    stream = read(nn.Linear(4, 2).eval(), list(x))
    assert isinstance(stream, LiveStream)
    parts = find_idle_tensors(stream, evidence_of(torch.randn(30, 4)))
    assert isinstance(parts, IdleTensors)
    assert parts.found == ()
