"""Probes against scikit-learn and planted labels."""

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

import sonde
from findings._evidence import evidence_of
from sonde.core import InputError
from sonde.explain import ControlTask, MdlProbe, Probe
from sonde.findings.evidence.answers.labels import label_evidence

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(600, 6, generator=DRAW, dtype=torch.float64)
LABEL = (X[:, 2] > 0).long() + (X[:, 2] > 1).long()


def by_hand(x, label) -> tuple[np.ndarray, np.ndarray]:
    """Return the class directions and offsets of Bayes' rule with one covariance."""
    x, label = x.numpy(), label.numpy()
    means = np.stack([x[label == k].mean(0) for k in np.unique(label)])
    precision = np.linalg.inv(OAS(assume_centered=True).fit(x - means[label]).covariance_)
    odds = np.log(np.bincount(label) / len(label))
    return means @ precision, odds - np.einsum("ki,ij,kj->k", means, precision, means) / 2


@pytest.mark.truth("scikit-learn's OAS of the residuals, and the rule of Bayes in numpy")
def test_the_map_is_that_of_bayes_with_one_covariance():
    found = Probe().fit(X, label=LABEL)
    weight, bias = by_hand(X, LABEL)
    wanted = X.numpy() @ weight.T + bias
    scores = (X @ found.weight.T + found.bias).numpy()
    # each row's scores are known up to a constant
    np.testing.assert_allclose(scores - scores[:, :1], wanted - wanted[:, :1], rtol=1e-9, atol=1e-9)
    assert torch.equal(found.classify(X), torch.from_numpy(wanted.argmax(1)))


@pytest.mark.truth("scikit-learn's groups left out, Bayes' rule in numpy")
def test_the_accuracy_is_that_of_groups_held_out():
    from sklearn.model_selection import LeaveOneGroupOut

    # A label that a group shares and its place gives away: only held-out groups tell the truth.
    group = torch.arange(600) // 150
    label = torch.tensor([0, 1, 0, 1])[group]
    x = X + 5 * torch.nn.functional.one_hot(group, 6)
    right = []
    for used, held in LeaveOneGroupOut().split(x, groups=group):
        weight, bias = by_hand(x[used], label[used])
        right.append((x[held].numpy() @ weight.T + bias).argmax(1) == label[held].numpy())
    found = Probe().fit(x, label=label, group=group)
    assert found.value == pytest.approx(float(np.concatenate(right).mean()))
    assert Probe().fit(x, label=label).value > 0.95  # rows of one group on both sides
    assert found.value < 0.6


@pytest.mark.truth("the probe of a scan")
@pytest.mark.parametrize("n", [800, 2600])
def test_it_prints_the_number_of_a_scan_of_the_same_rows(n):
    draw = torch.Generator().manual_seed(3)
    label = torch.randint(5, (n,), generator=draw)
    centre = 0.6 * torch.randn(5, 7, generator=draw, dtype=torch.float64)
    x = centre[label] + torch.randn(n, 7, generator=draw, dtype=torch.float64)
    of_scan = label_evidence(evidence_of(x, label=label)).sites[0]
    # 2,048 rows of a scan judge the classifier of all rows outside their fold
    found = sonde.fit(Probe(m=2048), sonde.Stream.of(x, label=label), progress=False)
    assert 0.3 < of_scan.accuracy < 0.95
    assert found.result("probe").value == of_scan.accuracy
    assert found.result("probe").se == pytest.approx(of_scan.se)
    pairs = torch.arange(n) // 4  # groups: the same folds, whatever the rows
    of_scan = label_evidence(evidence_of(x[:800], label=label[:800], group=pairs[:800])).sites[0]
    assert float(Probe().fit(x[:800], label=label[:800], group=pairs[:800])) == of_scan.accuracy


def test_planted_label_is_read_and_noise_is_not():
    found = Probe().fit(X, label=(X[:, 2] > 0).long())
    axis = found.weight[1] - found.weight[0]
    assert abs(float(axis[2] / axis.norm())) > 0.99
    assert found.value > 0.95
    noise = Probe().fit(X, label=torch.randint(2, (600,), generator=DRAW))
    assert abs(noise.value - noise.null) < 4 * noise.se
    assert noise.se == pytest.approx(0.5 / 600**0.5, rel=0.05)


def test_labels_that_cannot_be_probed_are_refused():
    with pytest.raises(InputError, match="two classes, got 1"):
        Probe().fit(X, label=torch.zeros(600, dtype=torch.int64))
    with pytest.raises(InputError, match="a different label for each of 600 rows"):
        Probe().fit(X, label=torch.arange(600))
    with pytest.raises(InputError, match="two groups"):
        Probe().fit(X, label=LABEL, group=torch.zeros(600, dtype=torch.int64))
    with pytest.raises(InputError, match="folds of at least 2, got 1"):
        Probe(folds=1)


def test_classes_that_groups_held_out_share_with_no_other_are_refused_or_flagged():
    group = (torch.arange(600) >= 250).long()
    for method in (Probe(), MdlProbe(), ControlTask("group")):
        with pytest.raises(
            InputError, match="2 classes that each lie in a single fold of the 2 groups"
        ):
            method.fit(X, label=group, group=group)
    # the third class stands in one group alone: its rows are wrong whatever the states say
    group = torch.arange(600) % 7
    label = torch.where(group == 3, 2, (X[:, 2] > 0).long())
    for method in (Probe(), MdlProbe(), ControlTask("group")):
        assert "few_rows" in method.fit(X, label=label, group=group).flags
        assert "few_rows" not in method.fit(X, label=label.clamp(max=1), group=group).flags


def test_it_fits_from_a_stream():
    fitted = sonde.fit(Probe(), sonde.Stream.of({"a": X}, label=LABEL), progress=False)
    assert fitted.result("probe").value == pytest.approx(
        Probe().fit(X, label=LABEL).value, abs=0.03
    )


@pytest.mark.truth("the exact interval of n of n")
def test_a_probe_that_is_always_right_has_an_error():
    far = torch.eye(6, dtype=torch.float64)[LABEL[:80]] * 50 + X[:80]
    found = Probe().fit(far, label=LABEL[:80])
    assert float(found.value) == 1.0
    assert 1.959964 * float(found.se) == pytest.approx(1 - 0.025 ** (1 / 80))
    pairs = Probe().fit(far, label=LABEL[:80], group=torch.arange(80) // 2)
    assert 1.959964 * float(pairs.se) == pytest.approx(1 - 0.025 ** (1 / 40))
