from dataclasses import replace

import pytest
import torch
from torch import Tensor

from findings._nets import Block, assert_clear, assert_raised
from findings._texts import Forgetful, gpt2, llama, padded
from sonde.findings.snd007 import SND007


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
    assert "Padded on the right it is stable." in finding.sentence
    assert finding.because_of is None


@pytest.mark.slow
def test_a_side_that_the_processor_does_not_use_is_a_note_if_deep() -> None:
    assert_clear(SND007().check(padded(gpt2(), "right")))
    check = SND007().check(padded(gpt2(), "right", deep=True))
    finding = assert_raised(check, "note")
    said = "Padding on the left, which the processor does not do, would change real tokens at"
    assert finding.sentence.startswith(said)
    assert_raised(SND007().check(padded(gpt2(), "left", deep=True)), "error")


def test_inputs_of_one_length_are_never_padded() -> None:
    found = padded(Forgetful(False).eval(), "right")
    length = replace(found.columns["length"], rows=torch.full_like(found.columns["length"].rows, 9))
    finding = assert_raised(
        SND007().check(replace(found, columns={**found.columns, "length": length})), "note"
    )
    assert "which inputs of one length do not need" in finding.sentence


@pytest.mark.slow
def test_rotary_positions_do_not_care() -> None:
    assert_clear(SND007().check(padded(llama(), "left")))


@pytest.mark.slow
def test_sixteen_bits_say_what_they_cannot_see() -> None:
    check = SND007().check(padded(llama().bfloat16(), "right"))
    assert_clear(check)
    assert "--dtype float32" in check.reason
