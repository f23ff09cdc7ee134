from dataclasses import replace

import torch
from torch import Tensor, nn

from findings._nets import Block, assert_clear, assert_raised, checked, tokens
from sonde.findings.codes.snd017 import SND017
from sonde.tap import LiveStream


class Reader(nn.Module):
    """Embeds tokens, adds a number to one unit of position 0, and runs two blocks."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(61, 16)
        self.blocks = nn.ModuleList([Block(16), Block(16)])
        self.amount = amount

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        x[:, 0, 3] += self.amount
        for block in self.blocks:
            x = block(x)
        return x


LENGTHS = [4 + i % 5 for i in range(64)]


def kept(reducer: str) -> LiveStream:
    """Return the stream of a model with a long first token, which means include."""
    return replace(tokens(Reader(200.0).eval(), LENGTHS, reducer=reducer), sinks="keep")


def test_a_long_first_token_drowns_the_mean() -> None:
    finding = assert_raised(checked(SND017(), kept("mean")), "warning")
    assert "averages over them too" in finding.sentence


def test_it_is_a_note_where_sinks_are_left_out() -> None:
    finding = assert_raised(
        checked(SND017(), tokens(Reader(200.0).eval(), LENGTHS, reducer="mean")), "note"
    )
    assert "left out of means, variances and detectors" in finding.sentence


def test_it_is_a_note_where_the_last_token_is_read() -> None:
    finding = assert_raised(
        checked(SND017(), tokens(Reader(200.0).eval(), LENGTHS, reducer="last")), "note"
    )
    assert finding.common


def test_ordinary_first_tokens_are_clear() -> None:
    assert_clear(checked(SND017(), tokens(Reader(0.0).eval(), LENGTHS, reducer="mean")))
