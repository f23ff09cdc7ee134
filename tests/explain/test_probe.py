"""Probes against scikit-learn and planted labels."""

import numpy as np
import pytest
import torch

import sonde
from sonde.core import InputError
from sonde.explain import ControlTask, MdlProbe, Probe

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(600, 6, generator=DRAW, dtype=torch.float64)
LABEL = (X[:, 2] > 0).long() + (X[:, 2] > 1).long()


@pytest.mark.truth("scikit-learn's ridge regression of one-hot classes")
def test_the_map_is_that_of_scikit_learn():
    from sklearn.linear_model import Ridge

    z = (X - X.mean(0)).numpy()
    alpha = 1e-3 * float((z**2).sum(0).mean())
    want = Ridge(alpha=alpha).fit(X.numpy(), np.eye(3)[LABEL.numpy()])
    found = Probe().fit(X, label=LABEL)
    np.testing.assert_allclose(found.weight.numpy(), want.coef_, atol=1e-9)
    np.testing.assert_allclose(found.bias.numpy(), want.intercept_, atol=1e-9)
    assert torch.equal(found.classify(X), torch.from_numpy(want.predict(X.numpy()).argmax(1)))


@pytest.mark.truth("scikit-learn's accuracy with groups left out")
def test_the_accuracy_is_that_of_groups_held_out():
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneGroupOut

    # A label that a group shares and its place gives away: only held-out groups tell the truth.
    group = torch.arange(600) // 150
    label = torch.tensor([0, 1, 0, 1])[group]
    x = X + 5 * torch.nn.functional.one_hot(group, 6)
    right = []
    for used, held in LeaveOneGroupOut().split(x, groups=group):
        z = x[used] - x[used].mean(0)
        fit = Ridge(alpha=1e-3 * float(z.square().sum(0).mean()))
        said = fit.fit(x[used].numpy(), np.eye(2)[label[used]]).predict(x[held].numpy())
        right.append(said.argmax(1) == label[held].numpy())
    found = Probe().fit(x, label=label, group=group)
    assert found.value == pytest.approx(float(np.concatenate(right).mean()))
    assert Probe().fit(x, label=label).value > 0.95  # rows of one group on both sides
    assert found.value < 0.6


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
