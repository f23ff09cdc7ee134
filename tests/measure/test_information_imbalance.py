import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import InformationImbalance, information_imbalance


@pytest.mark.truth("ranks of distances, row by row")
def test_known_values():
    result = information_imbalance(X, Y)
    want = independent_pairs.information_imbalance
    assert result.value == pytest.approx(want(X, Y), rel=1e-12)
    assert result.reverse == pytest.approx(want(Y, X), rel=1e-12)


@pytest.mark.truth("scipy's distances and mean ranks, one row at a time")
def test_ranks_count_rows_of_other_groups():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, 120)
    x = rng.standard_normal((120, 3))
    y = rng.integers(0, 3, (120, 2)).astype(float)  # many equal distances
    shares = []
    for i in range(120):
        other = group != group[i]
        near = np.argmin(cdist(x[i : i + 1], x[other])[0])
        rank = rankdata(cdist(y[i : i + 1], y[other])[0].round(9))[near]
        shares.append(2 * rank / (other.sum() + 1))
    result = information_imbalance(x, y, group=group)
    assert result.value == pytest.approx(np.mean(shares), rel=1e-10)


@pytest.mark.truth("a site that holds the other, and more")
def test_the_richer_site_tells_the_poorer_one():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 2))
    result = information_imbalance(x, x[:, :1])
    assert result.value < 0.1
    assert result.reverse > 0.5


@pytest.mark.truth("the spread over fresh draws; 1 for unrelated rows, alike in documents or not")
@pytest.mark.parametrize("size", [1, 3])
def test_standard_error_and_null(size):
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(100), size)

    def draw():
        return rng.standard_normal((100, 3))[group] + 0.1 * rng.standard_normal((100 * size, 3))

    free = [information_imbalance(draw(), draw(), group=group) for _ in range(12)]
    values = np.array([float(r) for r in free])
    assert abs(values.mean() - 1.0) < 4 * values.std(ddof=1) / 12**0.5
    found = []
    for _ in range(16):
        x = draw()
        found.append(information_imbalance(x, x + draw(), group=group))
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.7 < spread / np.mean([float(torch.as_tensor(r.se)) for r in found]) < 1.3


def test_constant_rows_and_too_few_groups_are_flagged():
    dead = information_imbalance(X, torch.ones(60, 2))
    assert "dead" in dead.flags
    assert math.isnan(float(dead))
    assert "few_rows" in information_imbalance(X, Y, group=np.arange(60) // 30).flags
    # three groups are the fewest whose ranks can differ
    assert math.isfinite(float(information_imbalance(X, Y, group=np.arange(60) // 20)))


def test_an_empty_sample_is_refused():
    with pytest.raises(InputError, match="expected m of at least 1, got 0"):
        InformationImbalance(0).fit(X, y=Y)
