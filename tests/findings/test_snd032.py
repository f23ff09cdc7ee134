import pytest
import torch

from findings._evidence import digits, evidence_of, states
from findings._nets import assert_raised
from sonde.findings.codes.snd032 import SND032, collapse
from sonde.measure import class_separability
from sonde.stats.linear_classifiers import fitted_on


def points(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return class means of digits plus noise in units of the spread between means."""
    x, label = digits()
    x = x.double()
    means = torch.stack([x[label == k].mean(0) for k in range(10)])
    spread = float((means - means.mean(0)).square().mean().sqrt())
    rows = means[label] + noise * spread * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return rows, label


@pytest.mark.slow
def test_means_with_a_little_noise_are_raised_and_test_data_are_not() -> None:
    rows, label = points(0.01)
    check = SND032().check(evidence_of({"a": rows * 0 + rows.flip(0), "b": rows}, label=label))
    finding = assert_raised(check, "note")
    assert finding.sites == ("b",)
    x, label = digits()
    found, _ = states(x[1::2])
    assert SND032().check(evidence_of(found, label=label[1::2])).state == "clear"


def test_without_labels_the_models_own_answers_are_the_classes() -> None:
    rows, label = points(0.01)
    logits = torch.nn.functional.one_hot(label, 10).double()
    check = SND032().check(evidence_of(rows, logits=logits))
    assert check.finding is not None
    assert "predicted by the model" in check.finding.sentence
    assert SND032().check(evidence_of(rows)).state == "not_applicable"


@pytest.mark.truth("the measure of the same name, by a pseudo-inverse")
def test_collapse_equals_the_trace_with_a_pseudo_inverse() -> None:
    rows, label = points(0.7)
    classes = fitted_on(rows, label)
    value = collapse(classes, classes.labels, rows, label)
    one = class_separability(rows, label).nc1
    assert value * (len(rows) - 10) / len(rows) == pytest.approx(one, rel=1e-6)


@pytest.mark.truth("the full covariance within classes")
def test_wide_sites_take_the_spread_from_sampled_rows() -> None:
    rows, label = points(0.7)
    full, diagonal = fitted_on(rows, label), fitted_on(rows, label, wide=True)
    assert collapse(diagonal, full.labels, rows, label) == pytest.approx(
        collapse(full, full.labels, rows, label), rel=1e-9
    )


@pytest.mark.truth("the two large classes alone")
@pytest.mark.parametrize("far", [1.0, 6.0])
def test_classes_of_one_row_change_nothing(far: float) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.cat([torch.arange(120) % 2, torch.arange(2, 902)])
    x = torch.randn(1020, 8, generator=generator)
    x[:120] += 6 * label[:120, None] - 3
    x[120:] *= far
    alone = SND032().check(evidence_of(x[:120], label=label[:120]))
    check = SND032().check(evidence_of(x, label=label))
    assert alone.figure is not None
    assert check.figure is not None
    assert check.state == alone.state
    assert check.figure.value == pytest.approx(alone.figure.value, rel=1e-4)
    assert check.figure.n_rows == 120
