import pytest
import torch

from findings._nets import assert_clear, assert_raised
from findings._texts import Forgetful, gpt2, llama, padded
from sonde.findings.codes.snd007 import SND007
from sonde.findings.codes.snd008 import SND008
from sonde.findings.evidence.modules.module_facts import read_modules


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_positions_padded_left(dtype: torch.dtype) -> None:
    found = padded(gpt2(dtype), "left")
    positions, padding = SND008().check(found), SND007().check(found)
    assert_raised(positions, "error")
    assert_raised(padding, "error")
    assert padding.finding is not None
    assert padding.finding.because_of == "SND008"
    model = found.get(read_modules)
    assert model.self_check.left_positions.worst < model.self_check.tau


@pytest.mark.slow
def test_rotary_positions_do_not_care() -> None:
    assert_clear(SND008().check(padded(llama(), "left")))


def test_positions_that_mend_nothing_are_left_to_the_rule_about_padding() -> None:
    found = padded(Forgetful(False).eval(), "left")
    check = SND008().check(found)
    assert_clear(check)
    assert "see SND007" in check.reason
    assert_raised(SND007().check(found), "error")


def test_a_processor_that_pads_right_is_not_asked() -> None:
    assert SND008().check(padded(gpt2(), "right")).state == "not_applicable"
