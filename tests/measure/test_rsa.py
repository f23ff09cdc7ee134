import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import RSA, rsa


@pytest.mark.truth("distances and correlations by scipy")
def test_known_values():
    for comparison in ("spearman", "pearson", "cosine"):
        want = independent_pairs.rsa(X, Y, comparison)
        assert rsa(X, Y, comparison=comparison).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("scipy's distances and ranks, numpy's correlation")
@pytest.mark.parametrize("distance", ["cosine", "correlation"])
def test_scipy_agrees(distance):
    x, y = pdist(X.numpy(), distance), pdist(Y.numpy(), distance)
    want = np.corrcoef(rankdata(x), rankdata(y))[0, 1]
    assert rsa(X, Y, distance=distance).value == pytest.approx(want, rel=1e-9)
    other = rsa(X, Y, distance=distance, comparison="pearson").value
    assert other == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
    few = np.corrcoef(pdist(X[:3].numpy(), distance), pdist(Y[:3].numpy(), distance))[0, 1]
    assert rsa(X[:3], Y[:3], distance=distance, comparison="pearson").value == pytest.approx(few)


@pytest.mark.essential
@pytest.mark.truth("unrelated rows, alike within documents, and the spread over fresh draws")
def test_null_and_error():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), 4)
    found = []
    for _ in range(8):
        x, y = (
            rng.standard_normal((30, 5))[group] + 0.1 * rng.standard_normal((120, 5)) for _ in "xy"
        )
        found.append((float(rsa(x, y, group=group)), float(rsa(x, y))))
    grouped, alone = np.mean(found, axis=0)
    assert abs(grouped) < 0.08
    assert alone > grouped + 0.03
    free = [
        rsa(rng.standard_normal((60, 5)), rng.standard_normal((60, 5)), comparison="cosine")
        for _ in range(6)
    ]
    nulls = [float(torch.as_tensor(r.null)) for r in free]
    assert np.mean([float(r) for r in free]) == pytest.approx(np.mean(nulls), abs=0.01)
    near = []
    for _ in range(12):
        x = rng.standard_normal((100, 4))
        near.append(rsa(x, x + rng.standard_normal((100, 4))))
    ratio = np.mean([float(torch.as_tensor(r.se)) for r in near])
    assert 0.6 < ratio / np.std([float(r) for r in near], ddof=1) < 1.7


def test_constant_rows_have_no_value():
    for distance in ("euclidean", "correlation"):
        result = rsa(torch.ones(60, 3), Y, distance=distance)
        assert np.isnan(float(result))
        assert "dead" in result.flags


def test_wrong_parameters_are_named():
    with pytest.raises(InputError, match="RSA: expected m of at least 4, got 3"):
        RSA(m=3)
