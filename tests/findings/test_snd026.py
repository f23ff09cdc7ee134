import pytest

from findings._counting import Counter, counting
from findings._nets import assert_clear, assert_raised, evidence_of
from sonde.findings.codes.snd026 import SND026
from sonde.findings.evidence.texts.lens import prediction_section


@pytest.mark.slow
def test_a_block_that_takes_the_answer_back() -> None:
    evidence = evidence_of(counting(Counter((1.5, 1.5, 1.0, -2.0)).eval()), lens=True)
    check = SND026().check(evidence)
    finding = assert_raised(check, "warning")
    assert finding.sites == ("blocks.3",)
    assert "final prediction is worse" in finding.sentence
    section = prediction_section(evidence)
    assert section is not None
    assert [s["site"] for s in section["sites"]] == [f"blocks.{i}:out" for i in range(4)]
    mended = evidence_of(counting(Counter((1.5, 1.5, -2.0, 3.0)).eval()), lens=True)
    assert_raised(SND026().check(mended), "note")


@pytest.mark.slow
def test_blocks_that_help_and_blocks_that_know_nothing_are_clear() -> None:
    helping = evidence_of(counting(Counter((1.0, 1.0, 1.0, 1.0)).eval()), lens=True)
    assert_clear(SND026().check(helping))
    confused = evidence_of(counting(Counter((-1.0, -1.0, -1.0, -1.0)).eval()), lens=True)
    check = SND026().check(confused)
    assert_clear(check)
    assert "entropy" in check.reason


def test_few_predicted_tokens_are_withheld() -> None:
    few = evidence_of(counting(Counter((1.0, 1.0)).eval(), n=8), lens=True)
    check = SND026().check(few)
    assert check.state == "withheld"
    assert "512" in check.reason
