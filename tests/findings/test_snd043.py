import pytest

from findings._evidence import digits, evidence_of
from findings._nets import assert_raised
from sonde.findings.codes.snd043 import SND043


@pytest.mark.parametrize(
    ("cut", "lost", "level"), [(4, 10, "note"), (50, 10, "warning"), (4, 4000, "warning")]
)
def test_levels_follow_examples_and_tokens(cut: int, lost: int, level: str) -> None:
    facts = {"n_truncated": cut, "n_tokens_cut": lost, "n_tokens": 12_800}
    finding = assert_raised(SND043().check(evidence_of(digits()[0][:200], facts=facts)), level)
    assert f"{cut} of 200 examples" in finding.sentence


def test_nothing_cut_is_clear_and_inputs_without_tokens_do_not_apply() -> None:
    x = digits()[0][:200]
    assert SND043().check(evidence_of(x, facts={"n_tokens": 12_800})).state == "clear"
    assert SND043().check(evidence_of(x)).state == "not_applicable"


def test_all_but_one_is_not_told_as_all() -> None:
    facts = {"n_truncated": 199, "n_tokens_cut": 10, "n_tokens": 12_800}
    check = SND043().check(evidence_of(digits()[0][:200], facts=facts))
    assert check.finding is not None
    assert "199 of 200 examples (99.5 %)" in check.finding.sentence
