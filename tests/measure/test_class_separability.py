from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score

import independent_classes
from measure.digits import DIGITS, NAMES
from sonde.core.errors import InputError
from sonde.measure import class_separability

A = [[0.0, 0.0], [0.0, 2.0], [6.0, 0.0], [6.0, 2.0]]
B = [[0.0, 0.0], [2.0, 2.0], [6.0, 0.0], [8.0, 2.0]]


@pytest.mark.truth("values worked out by hand")
def test_small_examples():
    a, b = class_separability(A, [0, 0, 1, 1]), class_separability(B, [0, 0, 1, 1])
    assert a.value == pytest.approx(0.9)
    assert b.value == pytest.approx(0.8181818182)
    assert a.calinski_harabasz == pytest.approx(18.0)
    assert b.calinski_harabasz == pytest.approx(9.0)
    assert b.nc1 == pytest.approx(0.0555555556)
    assert a.nc1 == pytest.approx(0.0, abs=1e-12)


@pytest.mark.truth("sklearn.metrics, and least squares of contrasts of the classes")
def test_digits():
    result = class_separability(DIGITS, NAMES)
    want = calinski_harabasz_score(DIGITS, NAMES)
    assert result.calinski_harabasz == pytest.approx(want, rel=1e-9)
    ratio, null = independent_classes.lda_ratio(DIGITS, NAMES)
    assert result.lda_ratio == pytest.approx(ratio, rel=1e-9)
    assert result.lda_null == pytest.approx(null, rel=1e-9)
    collapse = independent_classes.class_collapse(DIGITS, NAMES)
    assert result.nc1 == pytest.approx(collapse, rel=1e-9)


@pytest.mark.truth("the share of variance that the classes explain, by numpy")
def test_of_one_unit_the_lda_ratio_is_the_value():
    x, label = np.random.default_rng(1).standard_normal((40, 1)), np.arange(40) // 15 % 2
    within = sum(np.square(x[label == k] - x[label == k].mean()).sum() for k in range(2))
    result = class_separability(x, label)
    assert result.lda_ratio == pytest.approx(1 - within / np.square(x - x.mean()).sum())
    assert result.value == pytest.approx(result.lda_ratio)


@pytest.mark.truth("simulated labels that say nothing")
def test_null():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8))
    results = [class_separability(x, rng.integers(0, 5, 300)) for _ in range(24)]
    assert np.mean([float(r) for r in results]) == pytest.approx(results[0].null, rel=0.15)
    assert np.mean([r.lda_ratio for r in results]) == pytest.approx(results[0].lda_null, rel=0.15)
    assert np.mean([r.calinski_harabasz for r in results]) == pytest.approx(1.0, rel=0.15)


def test_lda_ratio_is_unchanged_by_invertible_maps():
    q = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.as_tensor(DIGITS)[:, DIGITS.std(0) > 0]
    q = q[: x.shape[1], : x.shape[1]]
    want = class_separability(x, NAMES).lda_ratio
    assert class_separability(x @ q + 3.0, NAMES).lda_ratio == pytest.approx(want, rel=1e-5)


@pytest.mark.truth("the same rows before the unit grew, in float64")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_massive_unit_hides_no_other(dtype):
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = (x[:, 1] > 0).long()
    want = class_separability(x, label)
    x[:, 0] *= 2e5
    result = class_separability(x.to(dtype), label)
    assert result.lda_ratio == pytest.approx(want.lda_ratio, rel=1e-5)
    assert result.lda_null == pytest.approx(want.lda_null, rel=1e-12)


@pytest.mark.truth("directions that the rows reach")
def test_fewer_float32_rows_than_units():
    x = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    result = class_separability(x, torch.arange(50) % 3)
    assert result.lda_null == pytest.approx(1.0)
    assert result.lda_ratio == pytest.approx(1.0)


@pytest.mark.truth("the same rows before they shrank")
def test_short_rows_are_not_separated():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    label = torch.arange(100) % 3
    want = class_separability(x, label).value
    assert class_separability(x * 1e-24, label).value == pytest.approx(want, rel=1e-5)


def test_unlabelled_rows_are_left_out_and_flagged():
    want = class_separability(A, [0, 0, 1, 1]).value
    result = class_separability([*A, [99.0, 99.0]], [0, 0, 1, 1, -1])
    assert result.value == pytest.approx(want)
    assert "unlabelled" in result.flags


def test_one_class_is_an_error():
    with pytest.raises(InputError, match="ClassSeparability: expected at least two classes, got 1"):
        class_separability(A, [0, 0, 0, 0])


@pytest.mark.truth("the mean over all orders of the labels")
def test_the_null_is_the_mean_over_orders():
    x = np.array([[0.3, 1.0], [2.0, -1.5], [0.7, 0.2], [-1.0, 4.0], [5.0, 0.1], [1.1, 1.9]])
    orders = {tuple(order) for order in permutations([0, 0, 0, 1, 1, 2])}
    every = [class_separability(x, list(order)) for order in orders]
    assert np.mean([float(found) for found in every]) == pytest.approx(every[0].null)
