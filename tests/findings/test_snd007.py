from findings._nets import assert_clear, assert_raised
from findings._texts import Forgetful, gpt2, llama, padded
from sonde.findings.snd007 import SND007


def test_a_model_that_ignores_its_mask() -> None:
    found = padded(Forgetful(False).eval(), "right")
    check = SND007().check(found)
    assert_raised(check, "error")
    assert check.finding is not None
    assert check.finding.sentence.startswith("Padding on the right changes real tokens at blocks.0")


def test_the_same_model_with_its_mask() -> None:
    assert_clear(SND007().check(padded(Forgetful(True).eval(), "right")))


def test_learned_positions_padded_right_are_clear_unless_deep() -> None:
    assert_clear(SND007().check(padded(gpt2(), "right")))
    assert_raised(SND007().check(padded(gpt2(), "right", deep=True)), "error")


def test_rotary_positions_do_not_care() -> None:
    assert_clear(SND007().check(padded(llama(), "left")))


def test_sixteen_bits_say_what_they_cannot_see() -> None:
    check = SND007().check(padded(llama().bfloat16(), "right"))
    assert_clear(check)
    assert "--dtype float32" in check.reason
