import torch
from torch.nn.functional import one_hot

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd039 import SND039
from sonde.findings.rule import Check

OWN = {"labels_are_models": True}


def ended(answer: torch.Tensor, label: torch.Tensor, x: torch.Tensor, sure: float) -> Check:
    logits = sure * one_hot(answer, 10).double()
    return SND039().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))


def test_one_answer_for_all_is_raised_and_one_that_learned_is_clear() -> None:
    x, label = arrays.digits()
    x, label = x[:900], label[:900]
    threes = torch.full_like(label, 3)
    finding = assert_raised(ended(threes, label, x, 9.0), "warning")
    assert "100 % of the model's answers are 3." in finding.sentence
    assert_raised(ended(threes, label, x, 0.1), "note")
    assert_clear(ended(label, label, x, 9.0))


def test_nobody_is_blamed_where_states_know_no_more() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=draw)
    label = (torch.rand(600, generator=draw) < 0.1).long()
    assert_clear(ended(torch.zeros_like(label), label, x, 9.0))
