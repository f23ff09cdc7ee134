import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from sonde.core.errors import InputError
from sonde.detect import MassMean


def _two(seed=0, n=400, dim=6, distance=2.0):
    """Two Gaussians of one covariance, at a Mahalanobis distance."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((dim, dim)) + 2 * np.eye(dim)
    label = np.arange(n) % 2
    white = rng.standard_normal((n, dim))
    gap = np.zeros(dim)
    gap[0] = distance
    return torch.from_numpy((white + label[:, None] * gap) @ mix), label


@pytest.mark.truth("Phi(2 / sqrt 2), the AUROC of the best test of two Gaussians at distance 2")
def test_two_gaussians_at_distance_two():
    assert float(norm.cdf(math.sqrt(2.0))) == pytest.approx(0.92135040, abs=1e-8)
    x, label = _two(n=40_000)
    scorer = MassMean(whiten=True).fit(x, label)
    fresh, own = _two(n=40_000)
    assert roc_auc_score(own, scorer.score(fresh)) == pytest.approx(0.92135040, abs=0.004)
    assert scorer.value == pytest.approx(2.0, abs=0.04)
    plain = MassMean().fit(x, label)
    assert roc_auc_score(own, plain.score(fresh)) < 0.9


@pytest.mark.truth("sklearn LinearDiscriminantAnalysis")
def test_whitened_is_linear_discriminant_analysis():
    x, label = _two(1)
    lda = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5]).fit(x.numpy(), label)
    scorer = MassMean(whiten=True, shrinkage=0.0).fit(x, label)
    np.testing.assert_allclose(scorer.score(x), lda.decision_function(x.numpy()), rtol=1e-8)


@pytest.mark.truth("the formula over all rows in memory")
def test_plain_difference_of_means():
    x, label = _two(2)
    x = 0.1 * x  # a gap shorter than 1
    one, zero = x[label == 1].mean(0), x[label == 0].mean(0)
    axis = (one - zero) / (one - zero).norm()
    want = (x - (one + zero) / 2) @ axis
    scorer = MassMean().fit(x, label)
    torch.testing.assert_close(scorer.score(x), want)
    spread = torch.cat([want[label == k] - want[label == k].mean() for k in (0, 1)])
    gap = want[label == 1].mean() - want[label == 0].mean()
    assert scorer.value == pytest.approx(float(gap / spread.square().mean().sqrt()))


@pytest.mark.truth("all other classes relabelled as one")
@pytest.mark.parametrize("whiten", [False, True])
def test_other_classes_are_one_group(whiten):
    x, label = _two(3)
    many = np.where(label == 1, 4, np.arange(len(label)) % 3)
    got = MassMean(whiten=whiten, positive=4).fit(x, many).score(x)
    torch.testing.assert_close(got, MassMean(whiten=whiten).fit(x, label).score(x))


def test_whitened_is_unchanged_by_invertible_maps():
    x, label = _two(4)
    a = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = MassMean(whiten=True, shrinkage=0.0)
    want = method.fit(x, label).score(x)
    torch.testing.assert_close(method.fit(x @ a + 3.0, label).score(x @ a + 3.0), want)


def test_errors_and_flags():
    x, label = _two(5, n=40)
    with pytest.raises(InputError, match="MassMean: expected rows of class 7 and of another class"):
        MassMean(positive=7).fit(x, label)
    with pytest.raises(InputError, match=r"got 40 and 0"):
        MassMean().fit(x, np.ones(40, dtype=int))
    with pytest.raises(InputError, match="MassMean: expected shrinkage"):
        MassMean(shrinkage=-1.0)
    partly = label.copy()
    partly[:10] = -1
    assert "unlabelled" in MassMean().fit(x, partly).flags
    assert "few_rows" in MassMean().fit(x[:5], label[:5]).flags
    for whiten in (False, True):
        still = MassMean(whiten=whiten).fit(torch.ones(6, 3), [0, 1] * 3)
        assert "dead" in still.flags
        assert still.score(torch.ones(2, 3)).tolist() == [0.0, 0.0]
