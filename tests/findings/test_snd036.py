import pytest
import torch

from findings._evidence import digits, evidence_of, shuffled, states
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd036 import SND036
from sonde.findings.evidence.answers.labels import eta_squared
from sonde.findings.rule import Check


@pytest.mark.slow
def test_shuffled_labels_are_raised_and_true_ones_at_random_weights_are_not() -> None:
    x, label = digits()
    for seed in range(3):
        finding = assert_raised(
            SND036().check(evidence_of(states(x)[0], label=label[shuffled(len(label), seed)])),
            "warning",
        )
        assert not finding.borderline
    check = SND036().check(evidence_of(states(x, trained=False)[0], label=label))
    assert check.state == "clear"


def test_labels_that_the_model_itself_tells_leave_a_trace() -> None:
    x, label = (
        torch.randn(800, 2, generator=torch.Generator().manual_seed(0)),
        torch.arange(800) % 2,
    )
    logits = 5 * torch.nn.functional.one_hot(label, 2).double()
    for own in (True, False):
        facts = {"labels_are_models": own}
        check = SND036().check(evidence_of(x, label=label, logits=logits, facts=facts))
        assert (check.state == "clear") == own


def test_too_few_rows_to_exclude_a_trace_are_withheld() -> None:
    x, label = digits()
    two = label < 2
    few = x[two][:70]
    label = label[two][:70][shuffled(70, 2)]
    check = SND036().check(evidence_of(few, label=label))
    assert check.state == "withheld"
    assert "do not exclude" in check.reason


@pytest.mark.slow
@pytest.mark.truth("sums of squares by class in torch")
def test_explained_share_is_one_minus_within_over_total() -> None:
    x, label = digits()[0].double(), digits()[1]
    evidence = evidence_of(x, label=label)
    classes = evidence.sites[0].classes
    assert classes is not None
    total = (x - x.mean(0)).square().sum()
    within = sum((x[label == k] - x[label == k].mean(0)).square().sum() for k in range(10))
    assert eta_squared(classes) == pytest.approx(float(1 - within / total), rel=1e-9)
    drawn = [
        eta_squared(evidence_of(x, label=label[shuffled(len(label), s)]).sites[0].classes)  # type: ignore[arg-type]
        for s in range(8)
    ]
    assert torch.tensor(drawn).mean() == pytest.approx(9 / 1796, rel=0.2)


@pytest.mark.truth("labels drawn without a look at the rows")
@pytest.mark.parametrize("n_classes", [2, 10])
def test_few_classes_without_meaning_are_raised_as_many_are(n_classes: int) -> None:
    found = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1500, 12, generator=generator) * torch.logspace(0, -1, 12)
        label = torch.randint(0, n_classes, (1500,), generator=generator)
        found.append(SND036().check(evidence_of(x, label=label)).state)
    assert found == ["raised"] * 8


def test_a_small_shift_of_one_class_is_a_trace() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 12, generator=generator)
    label = torch.randint(0, 2, (2000,), generator=generator)
    x[label == 1] += 0.3
    assert SND036().check(evidence_of(x, label=label)).state == "clear"


@pytest.mark.truth("targets of other rows; and a model that gives the mean alone")
def test_targets_of_other_rows_are_raised_for_a_regression() -> None:
    torch.manual_seed(0)
    x = torch.randn(240, 6)
    y = x @ torch.tensor([1.0, -2, 0.5, 0, 1, 3])

    def checked(target: torch.Tensor, said: torch.Tensor) -> Check:
        return SND036().check(evidence_of(x, logits=said[:, None], facts={"target": target}))

    finding = assert_raised(checked(y[torch.randperm(240)], y), "warning")
    assert finding.location is not None
    assert finding.location.answers
    assert_clear(checked(y, y + 0.5 * torch.randn(240)))
    assert_clear(checked(y, torch.randn(240)))
    assert_clear(checked(y[torch.randperm(240)], 0.01 * y))
