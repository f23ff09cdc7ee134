from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from findings._nets import Block, assert_clear, assert_raised
from findings._texts import Forgetful, gpt2, llama, padded
from sonde.findings.codes.snd004 import SND004
from sonde.findings.codes.snd007 import SND007


def test_a_model_that_ignores_its_mask() -> None:
    found = padded(Forgetful(False).eval(), "right")
    finding = assert_raised(SND007().check(found), "error")
    assert finding.sentence.startswith("Padding on the right changes real tokens at blocks.0")


def test_the_same_model_with_its_mask() -> None:
    assert_clear(SND007().check(padded(Forgetful(True).eval(), "right")))


def test_a_side_that_harms_beside_one_that_does_not() -> None:
    class Backwards(Forgetful):
        """Reads its mask, and counts positions from the first token, padded or not."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            place = torch.arange(input_ids.shape[1])[:, None] / 16
            x = self.embedding(input_ids) + place
            for block in self.blocks:
                assert isinstance(block, Block)
                x = x + block.down(torch.tanh(block.up(x)))
            return x

    finding = assert_raised(SND007().check(padded(Backwards(True).eval(), "left")), "error")
    assert "Padding on the right changes nothing." in finding.sentence
    assert finding.because_of is None


@pytest.mark.slow
def test_a_side_that_the_processor_does_not_use_is_a_note_if_deep() -> None:
    assert_clear(SND007().check(padded(gpt2(), "right")))
    check = SND007().check(padded(gpt2(), "right", deep=True))
    finding = assert_raised(check, "note")
    said = "Padding on the left, which the processor does not use, would change real tokens at"
    assert finding.sentence.startswith(said)
    assert_raised(SND007().check(padded(gpt2(), "left", deep=True)), "error")


def test_inputs_of_one_length_are_never_padded() -> None:
    found = padded(Forgetful(False).eval(), "right")
    length = replace(found.columns["length"], rows=torch.full_like(found.columns["length"].rows, 9))
    finding = assert_raised(
        SND007().check(replace(found, columns={**found.columns, "length": length})), "note"
    )
    assert "which is not needed as all inputs have one length" in finding.sentence


@pytest.mark.slow
def test_rotary_positions_do_not_care() -> None:
    assert_clear(SND007().check(padded(llama(), "left")))


@pytest.mark.slow
def test_sixteen_bits_say_what_they_cannot_see() -> None:
    check = SND007().check(padded(llama().bfloat16(), "right"))
    assert_clear(check)
    assert "--dtype float32" in check.reason


class Averaged(Forgetful):
    """Respects its mask at every token, and averages all positions or the real ones."""

    def __init__(self, of_real: bool) -> None:
        super().__init__(True)
        self.of_real, self.head = of_real, nn.Parameter(torch.randn(16, 5))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = super().forward(input_ids, attention_mask)
        kept = attention_mask if self.of_real else torch.ones_like(attention_mask)
        mean = (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        return {"last_hidden_state": x, "logits": mean @ self.head}


def test_answers_move_with_padding_where_no_state_does() -> None:
    finding = assert_raised(SND007().check(padded(Averaged(False).eval(), "right")), "error")
    assert finding.sentence.startswith("Padding on the right changes the answers")
    assert "The states at all sites do not change" in finding.sentence
    assert_clear(SND007().check(padded(Averaged(True).eval(), "right")))


class Dropout(nn.Module):
    """Draws in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.3)


def dropping(uses_mask: bool) -> Forgetful:
    net = Forgetful(uses_mask)
    net.add_module("embedding", nn.Sequential(net.embedding, Dropout()))
    return net.eval()


def test_dropout_does_not_pass_for_a_fault_of_padding() -> None:
    found = padded(dropping(True), "right")
    assert_clear(SND007().check(found))
    tried = assert_raised(SND004().check(found), "error").trial
    assert tried is not None
    assert tried.gain > 0.5
    assert not bool(tried.after.any())
    both = padded(dropping(False), "right")
    assert_raised(SND007().check(both), "error")
    assert_raised(SND004().check(both), "error")
