import itertools

import numpy as np
import pytest
import torch

import independent_pairs
from sonde import InputError
from sonde.measure import crossnobis


def rows(mean, per_cell, parts, seed, noise=1.0):
    """Return rows around the means of classes (class, dim), their classes and their parts."""
    rng = np.random.default_rng(seed)
    label, part, _ = (v.ravel() for v in np.mgrid[: len(mean), :parts, :per_cell])
    return mean[label] + noise * rng.standard_normal((len(label), mean.shape[1])), label, part


@pytest.mark.truth("products of differences, one pair of parts at a time")
def test_known_distances_of_three_parts():
    mean = np.random.default_rng(0).standard_normal((3, 4, 6))
    part, label = (v.ravel() for v in np.mgrid[:3, :4])
    found = crossnobis(mean.reshape(12, 6), label, part, whiten=False)
    want = independent_pairs.crossnobis(mean)
    pairs = [float(found.distance[a, b]) for a, b in itertools.combinations(range(4), 2)]
    assert pairs == pytest.approx(want.tolist(), rel=1e-9)
    assert float(found) == pytest.approx(want.mean(), rel=1e-9)


@pytest.mark.truth("brute force over pairs of parts, with numpy's inverse")
def test_whitened_by_the_covariance_within_cells():
    x, label, part = rows(np.random.default_rng(1).standard_normal((3, 5)), 20, 3, 2)
    x = x @ np.random.default_rng(3).standard_normal((5, 5))
    found = crossnobis(x, label, part, shrinkage=0.0)
    mean = np.array([[x[(label == c) & (part == p)].mean(0) for p in range(3)] for c in range(3)])
    rest = x - mean[label, part]
    inverse = np.linalg.inv(rest.T @ rest / (len(x) - 9))
    for a, b in itertools.combinations(range(3), 2):
        gap = mean[a] - mean[b]
        crossed = [gap[f] @ inverse @ gap[h] for f, h in itertools.permutations(range(3), 2)]
        assert float(found.distance[a, b]) == pytest.approx(np.mean(crossed) / 5, rel=1e-9)
    turned = crossnobis(3.0 * x @ np.linalg.qr(x[:5])[0] + 7.0, label, part)
    assert float(turned) == pytest.approx(float(crossnobis(x, label, part)), rel=1e-7)


@pytest.mark.truth("the true distance over fresh draws, and their spread")
def test_no_bias_and_the_standard_error():
    mean = np.zeros((2, 8))
    mean[1, 0] = 0.6
    found = [crossnobis(*rows(mean, 40, 2, s), whiten=False) for s in range(30)]
    values = np.array([float(f) for f in found])
    spread = values.std(ddof=1)
    assert values.mean() == pytest.approx(0.36 / 8, abs=4 * spread / 30**0.5)
    told = np.mean([float(torch.as_tensor(f.se)) for f in found])
    assert 0.7 < told / spread < 1.4
    none = [float(crossnobis(*rows(0 * mean, 40, 2, s), whiten=False)) for s in range(30)]
    assert abs(np.mean(none)) < 4 * np.std(none) / 30**0.5
    assert min(none) < 0


@pytest.mark.truth("the labelled rows alone")
def test_rows_without_a_class_or_a_part_are_left_out():
    x, label, part = rows(np.random.default_rng(4).standard_normal((3, 5)), 20, 2, 5)
    far = 9 + np.random.default_rng(6).standard_normal((4, 5))
    found = crossnobis(
        np.vstack([x, far]), np.append(label, [-1, -1, 0, 2]), np.append(part, [0, 1, -1, -1])
    )
    assert found.n == 120
    np.testing.assert_allclose(found.distance, crossnobis(x, label, part).distance, rtol=1e-9)


def test_a_class_that_a_part_lacks_is_an_error():
    x, label, part = rows(np.zeros((2, 3)), 5, 2, 0)
    with pytest.raises(InputError, match="Crossnobis: expected every class in every part"):
        crossnobis(x[:-5], label[:-5], part[:-5])


@pytest.mark.truth("rows without classes, whose groups share most of what they are")
def test_parts_that_divide_groups_are_flagged():
    label, part, copy = (v.ravel() for v in np.mgrid[:3, :2, :20])
    person, values = 20 * label + copy, {"divided": list[float](), "whole": list[float]()}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((60, 5))[person] + 0.1 * rng.standard_normal((120, 5))
        divided = crossnobis(x, label, part, group=person)
        whole = crossnobis(x, label, person % 2, group=person)
        assert divided.flags == ("divided_groups",)
        assert whole.flags == ()
        values["divided"].append(float(divided))
        values["whole"].append(float(whole))
    assert np.mean(values["divided"]) > 4 * np.std(values["divided"]) / 12**0.5
    assert abs(np.mean(values["whole"])) < 3 * np.std(values["whole"]) / 12**0.5
    assert crossnobis(x, label, part).flags == ()  # no group is given
