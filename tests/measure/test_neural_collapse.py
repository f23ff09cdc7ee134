import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

import independent_classes
from measure.digits import DIGITS, NAMES
from sonde.core.errors import InputError, ShapeError
from sonde.measure import neural_collapse

B = [[0.0, 0.0], [2.0, 2.0], [6.0, 0.0], [8.0, 2.0]]


def _simplex(noise, each=50, seed=0):
    """Return rows about the corners of a simplex of four classes, their labels, and the corners."""
    corners = np.sqrt(4 / 3) * (np.eye(4) - 0.25)
    label = np.repeat(np.arange(4), each)
    rng = np.random.default_rng(seed)
    return corners[label] + noise * rng.standard_normal((4 * each, 4)), label, corners


@pytest.mark.truth("covariances of class means in numpy")
def test_known_values():
    for x, label in ((B, [0, 0, 1, 1]), (DIGITS, NAMES)):
        want = independent_classes.class_collapse(x, label)
        assert neural_collapse(x, label).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("noise of known size about a simplex")
def test_a_noisy_simplex():
    x, label, corners = _simplex(0.1, each=5000)
    result = neural_collapse(x, label, head=(torch.tensor(corners), None))
    assert result.value == pytest.approx(
        0.0225, rel=0.02
    )  # 3 directions of 0.01 over 1 / 3, by 4 classes
    assert result.length_variation < 0.01
    assert result.angle_gap < 0.01
    assert result.head_gap < 1e-4
    assert result.disagreement == 0.0
    exact = neural_collapse(corners, np.arange(4))
    assert exact.value == pytest.approx(0.0, abs=1e-12)
    assert exact.cosines[0, 1] == pytest.approx(-1 / 3)
    assert exact.angle_gap == pytest.approx(0.0, abs=1e-12)


@pytest.mark.truth("scikit-learn's nearest centroid")
def test_the_head_against_the_nearest_mean():
    x, label, corners = _simplex(0.6)
    other = torch.tensor(corners)[[1, 0, 2, 3]]
    result = neural_collapse(x, label, head=(other, None))
    said = (x @ other.numpy().T).argmax(1)
    nearest = NearestCentroid().fit(x, label).predict(x)
    assert result.disagreement == pytest.approx(np.mean(said != nearest))
    assert result.head_gap > 0.5


@pytest.mark.truth("labels that say nothing, and the spread over fresh draws")
def test_null_and_error():
    rng = np.random.default_rng(0)
    label = np.tile(np.arange(4), 60)
    free = [neural_collapse(rng.standard_normal((240, 12)), label) for _ in range(16)]
    null = float(torch.as_tensor(free[0].null))
    assert np.median([float(r) for r in free]) == pytest.approx(null, rel=0.15)
    found = [neural_collapse(*_simplex(0.4, seed=seed)[:2]) for seed in range(16)]
    ratio = np.mean([float(torch.as_tensor(r.se)) for r in found])
    assert ratio / np.std([float(r) for r in found], ddof=1) == pytest.approx(1.0, abs=0.4)


def test_equal_means_and_wrong_heads():
    dead = neural_collapse([[1.0, 2.0], [1.0, 2.0]], [0, 1])
    assert math.isnan(float(dead))
    assert "dead" in dead.flags
    with pytest.raises(ShapeError, match="of width 3, got a site of width 2"):
        neural_collapse(B, [0, 0, 1, 1], head=(torch.ones(2, 3), None))
    with pytest.raises(InputError, match="labels below the head's 2 outputs, got 7"):
        neural_collapse(B, [0, 1, 7, 7], head=(torch.ones(2, 2), None))


def test_noisy_class_means_flag_the_error():
    draw = torch.Generator().manual_seed(0)
    means = 0.8 * torch.randn(4, 6, generator=draw)
    for n, is_noisy in ((200, True), (4000, False)):
        label = torch.randint(4, (n,), generator=draw)
        x = means[label] + torch.linspace(2.0, 0.4, 6) * torch.randn(n, 6, generator=draw)
        assert ("se_first_order" in neural_collapse(x, label).flags) == is_noisy
