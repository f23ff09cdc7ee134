import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd038 import SND038
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Check

OWN = {"labels_are_models": True}
SHIFT = torch.arange(10).roll(-1)
SWAP = torch.tensor([0, 1, 2, 8, 4, 5, 6, 7, 3, 9])


def answering(label: Tensor, answer: Tensor, sure: float = 4.0) -> Evidence:
    x = 2 * one_hot(label, 10).double() + torch.randn(
        len(label), 10, generator=torch.Generator().manual_seed(1)
    )
    logits = sure * one_hot(answer, 10).double()
    return arrays.evidence_of(x, label=label, logits=logits, facts=OWN)


def drawn(n: int, seed: int) -> tuple[Tensor, torch.Generator]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 10, (n,), generator=draw), draw


def ended(label: Tensor, answer: Tensor) -> Check:
    return SND038().check(answering(label, answer))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (SHIFT, "Labels are shifted down by one: label 0 is the model's class 1."),
        (SHIFT.argsort(), "Labels are shifted up by one: label 0 is the model's class 9."),
        (SWAP, "label 3 is the model's class 8, and the other way round."),
    ],
)
def test_exchanged_names_are_told_also_of_a_model_that_errs(names: Tensor, said: str) -> None:
    label, draw = drawn(1_500, 0)
    errs = torch.rand(1_500, generator=draw) < 0.2
    answer = torch.where(errs, torch.randint(0, 10, (1_500,), generator=draw), names[label])
    finding = assert_raised(ended(label, answer), "error")
    assert said in finding.sentence
    assert finding.figure.p is not None
    assert finding.figure.p < 1e-3


def test_confusions_are_no_exchange() -> None:
    label, draw = drawn(1_500, 1)
    coin = torch.rand(1_500, generator=draw) < 0.5
    both = (label == 3) | (label == 8)
    mixed = torch.where(both, torch.where(coin, 3, 8), label)
    always = torch.where(label == 3, 8, label)
    chain = torch.where((label == 3) & coin, 4, torch.where((label == 4) & coin, 5, label))
    for answer in (label, mixed, always, chain, torch.full_like(label, 8)):
        assert_clear(ended(label, answer))


@pytest.mark.slow
def test_answers_of_chance_never_pass() -> None:
    raised = 0
    for seed in range(15):
        label, draw = drawn(600, seed)
        answer = torch.randint(0, 10, (10,), generator=draw)[label]  # a random name for each class
        check = SND038().check(answering(label, answer, sure=0.2))
        raised += check.state == "raised"
        raised += ended(label, torch.randint(0, 10, (600,), generator=draw)).state == "raised"
    assert raised == 0


def test_exchanges_of_several_pairs_of_a_sure_model_hold_together() -> None:
    names = torch.tensor([8, 9, 4, 3, 2, 5, 6, 7, 0, 1])
    told = 0
    for seed in range(6):
        label, draw = drawn(400, seed)
        errs = torch.rand(400, generator=draw) < 0.1
        answer = torch.where(errs, torch.randint(0, 10, (400,), generator=draw), names[label])
        check = SND038().check(answering(label, answer, sure=60.0))
        told += check.finding is not None and len(check.finding.classes) == 6
    assert told >= 5


@pytest.mark.truth("planted: all labels moved by the same step")
@pytest.mark.parametrize(("step", "said"), [(1, "1 above"), (-7, "7 below")])
def test_labels_of_few_rows_each_that_are_moved_by_a_step_are_named(step: int, said: str) -> None:
    draw = torch.Generator().manual_seed(5)
    answer = torch.randint(10, 50, (300,), generator=draw)
    errs = torch.rand(300, generator=draw) < 0.2
    answer = torch.where(errs, torch.randint(0, 60, (300,), generator=draw), answer)

    def check(label: Tensor) -> Check:
        x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        logits = 5 * one_hot(answer, 60).double()
        return SND038().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))

    finding = assert_raised(check(answer - step), "error")
    assert said in finding.sentence
    assert finding.trial is not None
    assert finding.trial.holds
    assert float(finding.trial.after.mean()) == 1.0
    assert check(answer).state == "withheld"
    lot = torch.randint(0, 60, (300,), generator=draw)
    assert check(lot).state == "withheld"
