import pytest
import torch
from torch.nn.functional import one_hot

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd046 import SND046
from sonde.findings.evidence.trials.answer_trials import logit_constant
from sonde.findings.rule import Check

OWN = {"labels_are_models": True}


def ended(answer: torch.Tensor, label: torch.Tensor, x: torch.Tensor) -> Check:
    logits = 9 * one_hot(answer, 10).double()
    return SND046().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))


def test_a_class_that_is_never_answered_is_raised() -> None:
    x, label = arrays.digits()
    x, label = x[:900], label[:900]
    finding = assert_raised(ended(torch.where(label == 4, 9, label), label, x), "warning")
    assert finding.classes == ("4",)
    assert len(finding.examples) == int((label == 4).sum())
    assert_clear(ended(label, label, x))


def test_a_class_that_the_states_do_not_tell_is_no_fault_of_the_head() -> None:
    x, label = arrays.digits()
    x, label = x[:900].clone(), label[:900]
    x[label == 4] = x[label == 9][:1].expand(int((label == 4).sum()), -1)
    x[label == 9] = x[label == 9][:1].expand(int((label == 9).sum()), -1)
    x += 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert_clear(ended(torch.where(label == 4, 9, label), label, x))


def test_one_constant_that_is_not_all_of_a_shift_is_no_cause() -> None:
    draw = torch.Generator().manual_seed(2)
    label = torch.randint(0, 5, (600,), generator=draw)
    x = 3.0 * one_hot(label, 5).double() + torch.randn(600, 5, generator=draw)
    for constants, all_of_it in (([0, -9, 0, 0, 0], True), ([0, -9, 3, -2, 0], False)):
        logits = 2 * x + torch.tensor(constants)
        check = SND046().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))
        finding = assert_raised(check, "warning")
        assert finding.classes[0] == "1"
        assert finding.trial is not None
        assert finding.trial.holds
        assert (finding.trial.scope == "answers") is all_of_it
        assert ("Biases of other classes are wrong" in finding.fix) is not all_of_it


@pytest.mark.truth("the constant that was added to one logit")
def test_a_constant_on_a_logit_that_takes_a_few_rows_of_every_class_is_raised() -> None:
    draw = torch.Generator().manual_seed(5)
    label = torch.randint(0, 5, (500,), generator=draw)
    x = 3.0 * one_hot(label, 5).double() + torch.randn(500, 5, generator=draw)

    def check(constant: float) -> Check:
        logits = 2 * x + constant * one_hot(torch.tensor(3), 5)
        return SND046().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))

    finding = assert_raised(check(4.5), "warning")
    assert finding.figure.name == "accuracy_gain"
    assert finding.classes == ("3",)
    assert finding.trial is not None
    assert finding.trial.scope == "answers"
    assert finding.fix.startswith("logits[:, 3] -= ")
    assert_clear(check(0.0))


@pytest.mark.truth("the line is executed on the model's own output: its accuracy is the trial's")
@pytest.mark.parametrize("form", ["logit", "probability", "two probabilities"])
@pytest.mark.parametrize("constant", [3.5, -3.5])
def test_the_line_does_what_it_says_for_one_number_and_for_probabilities(
    form: str, constant: float
) -> None:
    draw = torch.Generator().manual_seed(8)
    label = (torch.rand(700, generator=draw) < 0.4).long()
    x = 2.5 * (2 * label - 1.0)[:, None] + 1.8 * torch.randn(700, 3, generator=draw)
    logit = x.mean(1, keepdim=True) + constant
    p = logit.sigmoid()
    raw = {"logit": logit, "probability": p, "two probabilities": torch.cat([1 - p, p], 1)}[form]
    evidence = arrays.evidence_of(x.double(), label=label, logits=raw.clone(), facts=OWN)
    finding = assert_raised(SND046().check(evidence), "warning")
    moved = logit_constant(evidence)
    assert moved is not None
    assert moved.trial.after.mean() > moved.trial.before.mean() + 0.1
    names = {"logits": raw.clone(), "p": raw.clone(), "torch": torch}
    exec(finding.fix.split(": correct on")[0].split("  #")[0], names)  # what a user would paste
    y = names["logits" if form == "logit" else "p"]
    assert isinstance(y, torch.Tensor)
    answer = y.argmax(1) if y.shape[1] == 2 else (y[:, 0] > (0.0 if form == "logit" else 0.5))
    right = (answer.long() == label).double()[moved.trial.rows]
    assert torch.equal(right, moved.trial.after)
