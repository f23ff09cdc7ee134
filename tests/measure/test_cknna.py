import math

import numpy as np
import pytest
import torch

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import CKNNA, cknna


@pytest.mark.truth("edges and paths of the graph of neighbours, one at a time")
def test_known_value():
    assert cknna(X, Y, k=10).value == pytest.approx(independent_pairs.cknna(X, Y, 10), rel=1e-9)


def criterion(a, b):
    """Return the debiased criterion of two whole matrices with empty diagonals."""
    n, one = len(a), np.ones(len(a))
    total = a.sum() * b.sum() / ((n - 1) * (n - 2))
    return np.trace(a @ b) + total - 2 * (one @ a @ b @ one) / (n - 2)


def whole(x, group, k):
    """Return all inner products of centred rows, and which are the largest of other groups."""
    gram = (x - x.mean(0)) @ (x - x.mean(0)).T
    ranked = np.where(group[:, None] == group, -np.inf, gram).argsort(axis=1)[:, -k:]
    mask = np.zeros_like(gram)
    np.put_along_axis(mask, ranked, 1.0, axis=1)
    return gram, mask


@pytest.mark.truth("whole matrices in numpy")
def test_is_the_alignment_of_masked_matrices_with_groups_left_out():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 3)
    x = rng.standard_normal((150, 6))
    y = x @ rng.standard_normal((6, 4)) + rng.standard_normal((150, 4))
    (k, first), (other, second) = whole(x, group, 7), whole(y, group, 7)
    both = first * second
    own = criterion(first * k, first * k) * criterion(second * other, second * other)
    want = criterion(both * k, both * other) / math.sqrt(own)
    assert cknna(x, y, group=group, k=7).value == pytest.approx(want, rel=1e-10)


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws, related and not")
def test_standard_error_and_null():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(8):
        x = rng.standard_normal((80, 4))
        found.append(cknna(x, x + rng.standard_normal((80, 4))))
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.5 < spread / np.mean([float(torch.as_tensor(r.se)) for r in found]) < 1.5
    free = [cknna(rng.standard_normal((80, 4)), rng.standard_normal((80, 4))) for _ in range(8)]
    nulls = [float(torch.as_tensor(r.null)) for r in free]
    gap = np.mean([float(r) for r in free]) - np.mean(nulls)
    assert abs(gap) < 4 * free[0].null_spread / 8**0.5
    assert np.std([float(r) for r in free]) == pytest.approx(free[0].null_spread, rel=0.7)


def test_constant_rows_and_too_few_rows_are_flagged():
    dead = cknna(torch.ones(60, 3), Y)
    assert "dead" in dead.flags
    assert math.isnan(float(dead))
    assert "few_rows" in cknna(X[:8], Y[:8]).flags
    group = torch.arange(60) // 20  # 40 rows of other groups
    assert math.isfinite(float(cknna(X, Y, k=40, group=group)))
    for k in (41, 61):
        assert math.isnan(float(cknna(X, Y, k=k, group=group)))


def test_wrong_k_is_named():
    with pytest.raises(InputError, match="CKNNA: expected k of at least 2, got 1"):
        CKNNA(1)
