from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from detect.shift_rates import assert_right_rate, comparisons, side_of
from narrow import present
from sonde.core.errors import InputError
from sonde.detect import Frechet
from sonde.detect._sides import split_moments

QUICK = Frechet(permutations=59)


def _rows(seed, n, dim=4):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def _heavy(seed, n):
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, (n, 4)))


@pytest.mark.truth("scipy.linalg.sqrtm")
def test_matches_the_formula():
    x, y = _rows(0, 80) @ _rows(8, 4), _rows(1, 60) @ _rows(9, 4) + 1
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    means = float((y.mean(0) - x.mean(0)).square().sum())
    root: Any = sqrtm(a @ b)
    want = means + np.trace(a + b - 2 * root.real)
    found: Any = QUICK.between(x, y)
    assert float(found) == pytest.approx(want, rel=1e-8)
    assert found.means == pytest.approx(means, rel=1e-10)


@pytest.mark.truth("numpy.cov of the chosen rows, one choice at a time")
def test_moments_of_choices():
    rows, chosen = _rows(5, 30, 3) + 2.0, (_rows(6, 4, 30) > 0).double()
    mean, covariance = split_moments(rows, chosen)
    for i, choice in enumerate(chosen):
        own = rows[choice == 1].numpy()
        np.testing.assert_allclose(mean[i], own.mean(0))
        np.testing.assert_allclose(covariance[i], np.cov(own.T))


@pytest.mark.truth("closed form of axis-aligned normal distributions")
def test_matches_the_closed_form_of_independent_units():
    x = _rows(0, 200)
    x = torch.linalg.qr(x - x.mean(0))[0] * 199**0.5
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([0.0, 1, 2, 0])
    want = float(((scale - 1) ** 2).sum() + shift.square().sum())
    assert float(QUICK.between(x, x * scale + shift)) == pytest.approx(want, rel=1e-9)


def test_the_same_side_twice_is_zero():
    x = _rows(3, 100, 6) @ _rows(4, 6, 6)
    side = Frechet().fit(x)
    assert abs(float(side.compare(side))) < 1e-8 * float(x.var(0).sum())


@pytest.mark.truth("two units in numpy: 4,000 data sets with the pooled covariance, no change")
def test_null_is_the_mean_distance_of_equal_normal_distributions():
    mix = torch.tensor([[3.0, 0.5], [0.0, 1.0]]).double()
    x, y = _rows(0, 60, 2) @ mix, _rows(1, 40, 2) @ mix
    pooled = (59 * np.cov(x.numpy().T) + 39 * np.cov(y.numpy().T)) / 98
    found = QUICK.between(x, y)
    rng, root = np.random.default_rng(2), np.linalg.cholesky(pooled).T
    one, other = (rng.standard_normal((4000, n, 2)) @ root for n in (60, 40))
    gap = np.square(one.mean(1) - other.mean(1)).sum(1)
    a, b = (
        np.einsum("tni,tnj->tij", v - v.mean(1, keepdims=True), v) / (v.shape[1] - 1)
        for v in (one, other)
    )
    # the trace of the root of a 2 x 2 matrix, squared, is its trace plus twice the root of det
    square = np.einsum("tij,tji->t", a, b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b))
    want = gap + np.trace(a + b, axis1=1, axis2=2) - 2 * np.sqrt(square)
    assert present(found.null) == pytest.approx(want.mean(), rel=0.06)


@pytest.mark.truth("the mean over simulated data sets without change")
def test_null_is_the_mean_without_change():
    scale = torch.tensor([3.0, 1.0, 1.0, 0.3]).double()
    found = comparisons(
        Frechet(permutations=1),
        lambda seed: (_rows(seed, 300) * scale, _rows(9_000 + seed, 200) * scale),
        80,
    )
    values, null = (
        np.array([float(c) for c in found]),
        np.mean([float(present(c.null)) for c in found]),
    )
    assert abs(values.mean() - null) < 4 * values.std() / 80**0.5
    assert values.mean() > 0.9 * null


@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
@pytest.mark.parametrize("draw", [_rows, _heavy])
def test_false_alarms_are_as_many_as_promised(draw):
    found = comparisons(QUICK, lambda seed: (draw(seed, 30), draw(10_000 + seed, 20)))
    assert_right_rate([c.p for c in found])


@pytest.mark.truth("planted shifts of mean and spread")
def test_power():
    for change in (lambda y: y + 0.7, lambda y: y * 1.6):
        found = comparisons(QUICK, lambda s, c=change: (_rows(s, 60), c(_rows(9_000 + s, 60))), 20)
        assert np.mean([c.p <= 0.05 for c in found]) > 0.8


def test_more_dimensions_than_rows_keep_the_p_value():
    side = side_of(QUICK, _rows(2, 12, 30))
    found = side.compare(side_of(QUICK, _rows(3, 12, 30)))
    assert found.flags == ("few_rows",)
    assert 0.05 < found.p <= 1


def test_parameters_are_checked():
    with pytest.raises(InputError, match="rank of at least 1, got 0"):
        Frechet(rank=0)
