import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from findings._evidence import digits, evidence_of, shuffled, states
from findings._nets import assert_raised
from sonde.findings.codes.snd031 import SND031
from sonde.findings.evidence.answers.labels import label_evidence
from sonde.stats.folds import FOLDS
from sonde.stats.linear_classifiers import fitted_on, without


def planted() -> dict[str, torch.Tensor]:
    """Take all but two directions between classes out of the last site."""
    x, label = digits()
    found, _ = states(x)
    last = found["blocks.2"].double()
    means = torch.stack([last[label == k].mean(0) for k in range(10)])
    _, _, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    gone = directions[2:9]
    return {**found, "blocks.2": last - last @ gone.T @ gone}


@pytest.mark.slow
def test_lost_directions_are_raised_and_a_rotation_is_not() -> None:
    label = digits()[1]
    check = SND031().check(evidence_of(planted(), label=label))
    finding = assert_raised(check, "note")
    assert check.state == "raised"
    assert finding.common
    assert finding.sites[1] == "blocks.2"
    assert finding.figure.value > 0.15
    found, _ = states(digits()[0])
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))[0]
    rotated = {**found, "blocks.2": found["blocks.2"] @ turn}
    assert SND031().check(evidence_of(rotated, label=label)).state == "clear"


@pytest.mark.slow
def test_the_head_that_gives_the_logits_is_the_last_one() -> None:
    x, label = digits()
    found, _ = states(x)
    noise = torch.randn(len(x), 10, generator=torch.Generator().manual_seed(3)).double()
    logits = torch.nn.functional.one_hot(label, 10) + 0.1 * noise
    sibling = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(4))
    rows = {**found, "head": logits, "sibling": sibling}
    assert SND031().check(evidence_of(rows, label=label, logits=logits)).state == "clear"
    assert SND031().check(evidence_of(rows, label=label)).state == "raised"


@pytest.mark.slow
def test_a_warning_where_the_models_own_answers_lag() -> None:
    label = digits()[1]
    worse = torch.nn.functional.one_hot(label, 10).double()
    wrong = torch.arange(len(label)) % 4 == 0
    worse[wrong] = worse[wrong].roll(1, dims=1)
    own = {"labels_are_models": True}
    assert_raised(
        SND031().check(evidence_of(planted(), label=label, logits=worse, facts=own)), "warning"
    )
    right = torch.nn.functional.one_hot(label, 10).double()
    assert_raised(
        SND031().check(evidence_of(planted(), label=label, logits=right, facts=own)), "note"
    )


def test_answers_at_chance_are_not_those_of_a_model_of_these_labels() -> None:
    label = digits()[1]
    chance = torch.randn(len(label), 10, generator=torch.Generator().manual_seed(2))
    own = {"labels_are_models": True}
    assert_raised(
        SND031().check(evidence_of(planted(), label=label, logits=chance, facts=own)), "note"
    )


@pytest.mark.slow
def test_layers_of_equal_noise_are_not_told_apart() -> None:
    raised = 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 3, 300)
        centre = np.eye(3)[label] * 1.5
        sites = {
            f"l{i}": np.c_[centre, np.zeros((300, 5))] + rng.normal(size=(300, 8))
            for i in range(10)
        }
        raised += SND031().check(evidence_of(sites, label=label)).state == "raised"
    assert raised == 0


@pytest.mark.truth("scikit-learn: OAS of the residuals, and the rule of Bayes in numpy")
def test_held_out_accuracy_equals_a_discriminant_fitted_by_hand() -> None:
    x, label = digits()
    x = (x[:, ::2] + 0.05 * torch.randn(len(x), 32, generator=torch.Generator().manual_seed(0)))[
        :900
    ]
    label = label[:900]
    evidence = evidence_of(x, label=label)
    found = label_evidence(evidence)
    order = found.shared.order
    assert order is not None
    rows, truth = x[order].double().numpy(), label[order].numpy()
    fold = np.mod(found.group.numpy(), FOLDS)
    predicted = np.zeros(len(rows), dtype=int)
    for f in range(FOLDS):
        a, b = rows[fold != f], truth[fold != f]
        means = np.stack([a[b == k].mean(0) for k in range(10)])
        precision = np.linalg.inv(OAS(assume_centered=True).fit(a - means[b]).covariance_)
        gap = rows[fold == f][:, None] - means
        distance = np.einsum("rki,ij,rkj->rk", gap, precision, gap)
        predicted[fold == f] = (np.log(np.bincount(b) / len(b)) - distance / 2).argmax(1)
    assert np.array_equal(predicted, found.sites[0].predicted.numpy())
    assert found.sites[0].accuracy == pytest.approx((predicted == truth).mean())


@pytest.mark.truth("moments of the other rows alone")
@pytest.mark.parametrize("wide", [False, True])
def test_taking_rows_out_of_moments_equals_never_having_seen_them(wide: bool) -> None:
    x, label = digits()
    x, label = x[:400].double(), label[:400]
    some = torch.zeros(400, dtype=torch.bool)
    some[shuffled(400)[:90]] = True
    some |= label == 7
    left = without(fitted_on(x, label, wide), fitted_on(x[some], label[some], wide))
    fresh = fitted_on(x[~some], label[~some], wide)
    assert torch.equal(left.labels, fresh.labels)
    torch.testing.assert_close(left.weight, fresh.weight)
    torch.testing.assert_close(left.mean, fresh.mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(left.pooled, fresh.pooled, rtol=1e-9, atol=1e-8)


def test_without_labels_it_does_not_apply_and_small_classes_are_withheld() -> None:
    x, label = digits()
    assert SND031().check(evidence_of(x[:100])).state == "not_applicable"
    check = SND031().check(evidence_of({"a": x[:100], "b": x[:100]}, label=label[:100]))
    assert check.state == "withheld"
    assert check.tables["needed"] == 30
