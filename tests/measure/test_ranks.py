"""What all effective ranks share: formulas of the eigenvalues, nulls, flags."""

import numpy as np
import pytest
import scipy.stats
import torch

from fixture_rows import X
from sonde import measure


def _eigenvalues(x):
    v = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))
    return v[v > 1e-9 * v.max()]


def _shares(x):
    return _eigenvalues(x) / _eigenvalues(x).sum()


def _singular_values(x):
    return np.linalg.svd(x, compute_uv=False)


def _entropy_rank(shares):
    return np.exp(scipy.stats.entropy(shares))


RANKS = {
    measure.effective_rank: lambda x: _entropy_rank(_singular_values(x)),
    measure.entropy_rank: lambda x: _entropy_rank(_eigenvalues(x)),
    measure.participation_ratio: lambda x: 1 / np.square(_shares(x)).sum(),
    measure.stable_rank: lambda x: 1 / _shares(x).max(),
}
EACH = pytest.mark.parametrize("rank", RANKS, ids=lambda rank: rank.__name__)


@EACH
@pytest.mark.truth("numpy and scipy on all rows in memory")
@pytest.mark.parametrize(("n", "dim"), [(500, 12), (20, 40), (3, 2)])
def test_formula(rank, n, dim):
    x = np.random.default_rng(n).standard_normal((n, dim)) * np.linspace(0.2, 3.0, dim) + 1.0
    for source in ("moments", "sample"):
        assert rank(x, source=source).value == pytest.approx(RANKS[rank](x), rel=1e-7)


@EACH
@pytest.mark.truth("simulated white rows")
def test_null_is_that_of_white_rows(rank):
    draws = [np.random.default_rng(s).standard_normal((256, 64)) for s in range(6)]
    seen = np.mean([float(rank(x)) for x in draws])
    assert rank(draws[0]).null == pytest.approx(seen, rel=0.03)


@EACH
def test_constant_and_few_rows_are_flagged(rank):
    result = rank(torch.zeros(10, 4))
    assert np.isnan(result.value)
    assert "dead" in result.flags
    for source in ("moments", "sample"):
        assert "few_rows" in rank(X[:4], source=source).flags


@EACH
@pytest.mark.truth("the first-order effects of rows on all moments")
@pytest.mark.parametrize("shape", [(60, 6), (40, 90)])
def test_a_sample_of_heavy_tails_is_flagged_as_the_moments_are(rank, shape):
    rows = np.random.default_rng(0).standard_t(2, shape) * np.linspace(2.0, 0.4, shape[1])
    rows[7] *= 99.0
    for x, is_flagged in ((rows, True), (np.random.default_rng(1).standard_normal(shape), False)):
        for source in ("moments", "sample"):
            assert ("heavy_tails" in rank(x, source=source).flags) is is_flagged
