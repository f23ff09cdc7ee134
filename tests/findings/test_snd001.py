import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from findings._nets import (
    assert_clear,
    assert_raised,
    checked,
    evidence_of,
    noise,
    tensors,
    tokens,
)
from narrow import expect
from sonde.findings.codes.snd001 import SND001
from sonde.findings.evidence.versus.comparison import VersusEvidence


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


def net(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), middle, nn.Linear(8, 3)).eval()


def test_the_first_site_with_infinities_is_named() -> None:
    module = net(nn.Linear(8, 8))
    with torch.no_grad():
        expect(nn.Linear, module[2]).weight[4, 2] = math.inf
    finding = assert_raised(checked(SND001(), tensors(module, noise(50, 6))), "error")
    assert finding.sites[0] == "2"
    assert "at 2, the first of 2 such sites" in finding.sentence


def test_logarithms_of_negatives_are_counted_by_row() -> None:
    x = torch.rand(40, 6) + 0.1
    x[[3, 7, 11], 2] = -1.0
    module = nn.Sequential(Log(), nn.Linear(6, 3)).eval()
    finding = assert_raised(checked(SND001(), tensors(module, x)), "error")
    assert finding.figure.value == 3
    said = "3 of 40 rows hold NaN, infinity or a number too large to square at 0"
    assert said in finding.sentence


def test_when_no_row_is_finite_the_site_is_still_named() -> None:
    module = net(nn.Linear(8, 8))
    with torch.no_grad():
        expect(nn.Linear, module[0]).bias.fill_(math.nan)
    finding = assert_raised(checked(SND001(), tensors(module, noise(20, 6))), "error")
    assert finding.sites[0] == "0"
    assert finding.effect == 1.0


def test_finite_states_are_clear() -> None:
    assert_clear(checked(SND001(), tensors(net(nn.Linear(8, 8)), noise(50, 6))))


@pytest.mark.truth("the hypergeometric distribution by counting")
def test_broken_rows_of_the_second_data_alone_are_an_error() -> None:
    x, y = torch.rand(40, 6) + 0.1, torch.rand(50, 6) + 0.1
    y[::5, 2] = -1.0
    module = nn.Sequential(Log(), nn.Linear(6, 3)).eval()
    mine, theirs = (evidence_of(tensors(module, rows)) for rows in (x, y))
    versus = VersusEvidence(
        {site.schema.key: site for site in theirs.sites}, theirs.columns, theirs.data, {},
        other_counters=theirs.counters,
    )  # fmt: skip
    finding = assert_raised(checked(SND001(), replace(mine, versus=versus)), "error")
    assert finding.of_other
    assert "10 of 50 rows of OTHER hold NaN" in finding.sentence
    ways = [math.comb(40, k) * math.comb(50, 10 - k) / math.comb(90, 10) for k in range(11)]
    p = sum(way for way in ways if way <= ways[0] * (1 + 1e-9))
    assert f"p = {p:.2g}" in finding.sentence
    y[::5, 2] = 1.0
    theirs = evidence_of(tensors(module, y))
    versus = replace(versus, other_counters=theirs.counters)
    assert_clear(checked(SND001(), replace(mine, versus=versus)))


class Empty(nn.Module):
    """Divides what it adds by the mask, so that padded positions alone are not finite."""

    def __init__(self, careful: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(61, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.careful = careful

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for i, block in enumerate(self.blocks):
            weight = attention_mask[..., None] if i == 1 and not self.careful else 1.0
            x = x + block(x) / weight
        return x


def test_padded_positions_alone_are_a_note() -> None:
    lengths = [9 + i % 8 for i in range(40)]
    finding = assert_raised(
        checked(SND001(), tokens(Empty(False).eval(), lengths, reducer="last")), "note"
    )
    assert finding.sites == ("blocks.2",)
    assert finding.figure.value == 0
    assert_clear(checked(SND001(), tokens(Empty(True).eval(), lengths, reducer="last")))
