import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sonde.core.errors import InputError
from sonde.measure import VInformation, v_information
from sonde.measure.v_information import _Fit


def _classes(seed, n=600, apart=2.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    return rng.standard_normal((n, 3)) + apart * np.eye(2, 3)[label], label


@pytest.mark.truth("the log odds of two Gaussians, integrated over many rows")
def test_is_the_information_where_the_border_is_linear():
    x, label = _classes(0, 4000)
    far, near = _classes(1, 200000)
    odds = 2.0 * (far[:, 0] - far[:, 1]) * np.where(near == 0, 1, -1)
    want = np.log(2) - np.mean(np.log1p(np.exp(-odds)))
    found = v_information(x, label, m=len(x))
    assert found.value == pytest.approx(want, abs=0.01)
    assert found.entropy == pytest.approx(np.log(2), abs=1e-3)
    assert found.accuracy == pytest.approx(np.mean(odds > 0), abs=0.02)


@pytest.mark.truth("scikit-learn with the halves written out")
def test_each_half_is_judged_by_the_other():

    x, label = _classes(2, 80, 1.0)
    group = np.arange(80) // 2
    found = v_information(x, label, group=group, l2=2.0)
    assert found.n == 80
    # any split of groups gives a figure of this size, and no row is judged by its own fit
    values = []
    for seed in range(10):
        half = np.isin(group, np.random.default_rng(seed).permutation(40)[:20])
        total = 0.0
        for fitted in (half, ~half):
            scale = np.sqrt(np.var(x[fitted], axis=0).mean())
            model = LogisticRegression(C=0.5).fit(x[fitted] / scale, label[fitted])
            log = model.predict_log_proba(x[~fitted] / scale)
            share = np.bincount(label[fitted]) / fitted.sum()
            at = label[~fitted]
            total += np.sum(log[np.arange(len(at)), at] - np.log(share)[at])
        values.append(total / 80)
    assert min(values) < found.value < max(values)


@pytest.mark.truth("classes that no line separates")
def test_what_no_line_can_use_does_not_count():
    rng = np.random.default_rng(3)
    x = rng.choice([-1.0, 1.0], (800, 2))
    parity = (x[:, 0] * x[:, 1] > 0).astype(int)
    found = v_information(x, parity)
    assert float(found) < 0.01
    known = v_information(np.hstack([x, x[:, :1] * x[:, 1:]]), parity)
    assert known.value > 0.9 * known.entropy


@pytest.mark.truth("labels without meaning, alike in a document")
def test_null_and_groups():
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(100), 4)
    values, nulls = [], []
    for _ in range(6):
        x = rng.standard_normal((100, 8))[group] + 0.1 * rng.standard_normal((400, 8))
        found = v_information(x, rng.integers(0, 2, 100)[group], group=group)
        values.append(float(found))
        nulls.append(float(torch.as_tensor(found.null)))
    spread = np.std(values) / np.sqrt(6)
    assert np.mean(nulls) < -0.02
    assert np.mean(values) == pytest.approx(np.mean(nulls), abs=4 * spread)


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws")
def test_standard_error():
    found = [v_information(*_classes(10 + i, 200, 1.0)) for i in range(12)]
    errors = [float(torch.as_tensor(r.se)) for r in found]
    assert 0.6 < np.mean(errors) / np.std([float(r) for r in found]) < 1.5


@pytest.mark.truth("classifiers fitted without each row in turn")
@pytest.mark.parametrize("n_classes", [2, 3])
def test_what_a_row_taught_is_what_is_lost_without_it(n_classes):
    rng = np.random.default_rng(n_classes)
    label = np.arange(120.0) % n_classes
    x, judged = rng.standard_normal((2, 120, 4)) + label[None, :, None] * [1.0, 0, 0, 0]
    at = label.astype(int)

    def gained(keep):
        fit = _Fit.of(x[keep], label[keep], 1.0)
        share = np.bincount(at[keep]) / len(keep)
        return (fit.log_probabilities(judged)[np.arange(120), at] - np.log(share)[at]).sum()

    rows = np.arange(120)
    lost = [gained(rows) - gained(np.delete(rows, j)) for j in range(0, 120, 5)]
    taught = _Fit.of(x, label, 1.0).taught(judged, at)[::5]
    assert np.corrcoef(lost, taught)[0, 1] > 0.93
    assert 0.7 < np.std(taught) / np.std(lost) < 1.1


@pytest.mark.slow
@pytest.mark.truth("the spread over fresh draws")
def test_the_error_counts_what_the_classifiers_learned():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(100 + seed)
        label = rng.integers(0, 4, 100)
        x = rng.standard_normal((100, 8)) + 1.5 * np.eye(4, 8)[label]
        found.append(v_information(x, label, l2=0.3))
    errors = [float(torch.as_tensor(r.se)) for r in found]
    assert 0.8 < np.mean(errors) / np.std([float(r) for r in found]) < 1.3


def test_bad_labels_are_flagged_or_refused():
    x, label = _classes(5, 100)
    rare = np.where(np.arange(100) == 7, 9, label)
    found = v_information(x, rare)
    assert "few_rows" in found.flags
    assert found.labels.tolist() == [0, 1]
    dead = v_information(np.ones((100, 2)), label)
    assert np.isnan(dead.value)
    assert "dead" in dead.flags
    with pytest.raises(InputError, match="VInformation: expected at least two classes, got 1"):
        v_information(x, np.zeros(100, dtype=int))
    with pytest.raises(InputError, match=r"VInformation: expected l2 in \(0, inf\)"):
        VInformation(l2=0.0)
