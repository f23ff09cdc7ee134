"""What pictures of scores are made of: numpy's counts, scikit-learn's curve, the threshold."""

import math

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics

from sonde.core.errors import InputError
from sonde.run.scoring.curves import MOST_POINTS, curves, histogram, roc_points, threshold_of


def table(scores, p=None, site="a"):
    n = len(scores)
    columns = {
        "id": [f"r{i}" for i in range(n)],
        "position": [0] * n,
        "site": [site] * n,
        "instrument": ["knn"] * n,
        "score": pa.array(scores, pa.float64()),
        "p": pa.array([None] * n if p is None else p, pa.float64()),
    }
    return pa.table(columns)


@pytest.mark.truth("numpy.histogram")
def test_counts_are_those_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=200), rng.normal(size=90) + 2
    found = histogram(a, b)
    edges = np.histogram_bin_edges(np.concatenate([a, b]), 40)
    np.testing.assert_allclose(found["edges"], edges, atol=1e-12)
    np.testing.assert_array_equal(found["counts_usual"], np.histogram(a, found["edges"])[0])
    np.testing.assert_array_equal(found["counts_unusual"], np.histogram(b, found["edges"])[0])
    assert (sum(found["counts_usual"]), sum(found["counts_unusual"])) == (200, 90)


@pytest.mark.truth("numpy.geomspace; every row is counted once")
def test_a_long_tail_gets_bins_that_widen():
    rng = np.random.default_rng(1)
    a = np.exp(3 * rng.normal(size=300))
    found = histogram(a)
    assert found["log"]
    np.testing.assert_allclose(found["edges"], np.geomspace(a.min(), a.max(), 41))
    assert sum(found["counts_usual"]) == 300


@pytest.mark.parametrize(
    ("scores", "counts", "beyond"),
    [([], [], 0), ([math.inf] * 3, [], 3), ([2.0], [1], 0), ([2.0, 2.0, math.inf], [2], 1)],
)
def test_few_equal_and_infinite_scores(scores, counts, beyond):
    found = histogram(scores)
    assert (found["counts_usual"], found["beyond_usual"]) == (counts, beyond)


def test_nan_is_refused():
    with pytest.raises(InputError, match="without NaN"):
        histogram([math.nan])


@pytest.mark.truth("sklearn.metrics.roc_curve with its own dropping of inner points")
def test_points_are_the_corners():
    rng = np.random.default_rng(2)
    scores, unusual = np.round(rng.normal(size=150), 1), rng.integers(0, 2, 150)
    found = roc_points(scores, unusual, None, resamples=0)
    fpr, tpr, _ = sklearn.metrics.roc_curve(unusual, scores, drop_intermediate=False)
    both = np.stack([found["fpr"], found["tpr"]], axis=1)
    every = np.stack([fpr, tpr], axis=1)
    gap = np.abs(both[:, None] - every[None]).max(axis=2).min(axis=1)
    assert gap.max() < 1e-12
    np.testing.assert_allclose(np.interp(fpr, both[:, 0], both[:, 1])[[0, -1]], [0, 1])
    assert np.trapezoid(both[:, 1], both[:, 0]) == pytest.approx(np.trapezoid(tpr, fpr))


def test_many_points_are_thinned_between_both_ends():
    rng = np.random.default_rng(3)
    unusual = rng.integers(0, 2, 4000)
    found = roc_points(rng.normal(size=4000) + unusual, unusual, None, resamples=0)
    assert len(found["fpr"]) == MOST_POINTS
    assert (found["fpr"][0], found["tpr"][-1]) == (0, 1)


@pytest.mark.truth("by hand")
def test_the_threshold_parts_alarms_from_the_rest():
    both = [table([1.0, 2.0, 5.0], [0.9, 0.2, 0.01]), table([3.0, None], [0.06, 0.01])]
    assert threshold_of(both, 0.05) == 3.0
    assert threshold_of(both, 0.1) == 2.0
    assert threshold_of([table([1.0, 2.0], [0.01, 0.5])], 0.05) is None
    assert threshold_of([table([1.0])], 0.05) is None
    assert threshold_of([table([1.0], [0.01])], 0.05) is None
    assert threshold_of([table([1.0, 2.0], [0.9, 0.2])], 0.05) is None


def test_each_site_has_its_curves():
    a = pa.concat_tables([table([0.0, 1.0, 2.0]), table([0.0, 1.0, 1.0], site="b")])
    b = pa.concat_tables([table([2.0, None, 3.0]), table([0.0, 1.0, 1.0], site="b")])
    first, second = curves(a, b, resamples=10)
    assert (first["site"], second["site"]) == ("a", "b")
    assert first["histogram"]["beyond_unusual"] == 1
    assert first["histogram"]["threshold"] is None
    assert first["roc"]["tpr"][-1] == 1
    assert len(first["roc"]["low"]) == len(first["roc"]["grid"])
