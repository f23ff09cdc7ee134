import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import MutualKNN, mutual_knn


@pytest.mark.truth("sets of neighbours, row by row")
def test_known_values():
    result = mutual_knn(X, Y, k=5, metric="euclidean")
    value, jaccard = independent_pairs.mutual_knn(X, Y, 5)
    assert result.value == pytest.approx(value, rel=1e-12)
    assert result.jaccard == pytest.approx(jaccard, rel=1e-12)


@pytest.mark.truth("scikit-learn's exact neighbours")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_is_the_overlap_of_the_peers_neighbours(metric):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8)) + 5
    y = x @ rng.standard_normal((8, 6)) + rng.standard_normal((400, 6))
    found = [
        NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(z).kneighbors()[1]
        for z in (x, y)
    ]
    want = np.mean([len(set(a) & set(b)) / 7 for a, b in zip(*found, strict=True)])
    assert mutual_knn(x, y, k=7, metric=metric).value == pytest.approx(want, rel=1e-12)


@pytest.mark.truth("unrelated documents of alike rows")
def test_rows_of_a_document_are_no_neighbours():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(64), 8)
    x, y = (rng.standard_normal((64, 5))[group] + 0.1 * rng.standard_normal((512, 5)) for _ in "xy")
    grouped, alone = mutual_knn(x, y, group=group), mutual_knn(x, y)
    null = float(torch.as_tensor(grouped.null))
    assert float(grouped) == pytest.approx(null, abs=0.02)
    assert float(alone) > 5 * null
    thirds = mutual_knn(X, Y, group=np.arange(60) // 20)
    assert float(torch.as_tensor(thirds.null)) == pytest.approx(10 / 40)  # of 40 other rows


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws")
def test_standard_error_and_null():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        x = rng.standard_normal((300, 5))
        found.append(mutual_knn(x, x + rng.standard_normal((300, 5)), metric="euclidean"))
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.75 < np.mean([float(torch.as_tensor(r.se)) for r in found]) / spread < 1.35
    free = [
        mutual_knn(rng.standard_normal((300, 5)), rng.standard_normal((300, 5))) for _ in range(10)
    ]
    null = float(torch.as_tensor(free[0].null))
    assert np.mean([float(r) for r in free]) == pytest.approx(null, rel=0.1)


def test_rows_of_zeros_and_too_few_rows_are_flagged():
    x = X.clone()
    x[3] = 0.0
    assert "dead" in mutual_knn(x, Y).flags
    few = mutual_knn(X[:8], Y[:8])
    assert "few_rows" in few.flags
    assert np.isnan(float(few))
    assert mutual_knn(X[:8], Y[:8], k=7).value == 1.0  # all other rows


def test_wrong_parameters_are_named():
    with pytest.raises(InputError, match="MutualKNN: expected k of at least 1"):
        MutualKNN(k=0)
