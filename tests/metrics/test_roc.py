"""The ROC curve: scikit-learn, brute force over resamples, what is refused."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from sonde.core.errors import InputError
from sonde.metrics import auroc, roc
from sonde.metrics.intervals import Bootstrap
from sonde.metrics.roc import POINTS


def rows(n=120, seed=0):
    rng = np.random.default_rng(seed)
    unusual = rng.integers(0, 2, n)
    return np.round(rng.normal(size=n) + unusual, 1), unusual


@pytest.mark.truth("sklearn.metrics.roc_curve")
def test_points_equal_those_of_scikit_learn():
    scores, unusual = rows()
    fpr, tpr, thresholds = sklearn.metrics.roc_curve(unusual, scores, drop_intermediate=False)
    found = roc(scores, unusual, resamples=0)
    np.testing.assert_allclose(found.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(found.tpr, tpr, atol=1e-12)
    np.testing.assert_array_equal(found.threshold, thresholds)
    assert len(found.grid) == 0


@pytest.mark.truth("area under the points; auroc")
def test_the_area_is_the_auroc():
    scores, unusual = rows(seed=3)
    found = roc(scores, unusual, resamples=0)
    assert np.trapezoid(found.tpr, found.fpr) == pytest.approx(
        float(auroc(scores, unusual, resamples=0).value)
    )


@pytest.mark.truth("each resample written out as rows, scikit-learn's curve, numpy quantiles")
def test_the_band_is_that_of_curves_of_resampled_groups():
    scores, unusual = rows(160, 5)
    group = np.arange(160) // 2
    found = roc(scores, unusual, group, resamples=30, seed=7, level=0.9)
    heights = []
    for weight in torch.cat(list(Bootstrap(30, 7).weights(torch.tensor(group)))).long():
        again = np.repeat(np.arange(160), weight)
        fpr, tpr, _ = sklearn.metrics.roc_curve(
            unusual[again], scores[again], drop_intermediate=False
        )
        top = {x: y for x, y in zip(fpr, tpr, strict=True)}
        height = np.interp(found.grid, fpr, tpr)
        for i, x in enumerate(found.grid.tolist()):
            exact = [y for at, y in top.items() if abs(at - x) < 1e-12]
            height[i] = exact[0] if exact else height[i]
        heights.append(height)
    want = np.quantile(heights, [0.05, 0.95], axis=0)
    inner = slice(1, POINTS - 1)
    np.testing.assert_allclose(found.low[inner], want[0][inner], atol=1e-9)
    np.testing.assert_allclose(found.high[inner], want[1][inner], atol=1e-9)


def test_infinite_scores_are_ranked():
    found = roc([0.0, math.inf, math.inf], [0, 0, 1], resamples=0)
    assert found.fpr.tolist() == [0, 0.5, 1]
    assert found.tpr.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("scores", "unusual", "said"),
    [
        ([], [], "at least one row"),
        ([0.0, math.nan], [0, 1], "without NaN"),
        ([0.0, 1.0], [1, 1], "expected rows of both labels"),
    ],
)
def test_what_is_refused(scores, unusual, said):
    with pytest.raises(InputError, match=said):
        roc(scores, unusual)
