"""Intervals, areas under curves, false discovery, distances."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import sklearn.neighbors
import torch

from sonde.core.errors import InputError
from sonde.stats import (
    auroc,
    benjamini_hochberg,
    clopper_pearson,
    distance_chunks,
    grouped_share,
    midranks,
    nearest,
    wilson,
)

GENERATOR = torch.Generator().manual_seed(6)


@pytest.mark.truth("scipy.stats.binomtest")
@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (997, 1000)])
def test_intervals(k, n):
    test = scipy.stats.binomtest(k, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        want = test.proportion_ci(0.99, method)
        assert ours(k, n, 0.99) == pytest.approx((want.low, want.high), abs=1e-12)


def test_intervals_refuse():
    with pytest.raises(InputError, match="got 3 of 2"):
        wilson(3, 2)


@pytest.mark.truth("scikit-learn, and scipy.stats.rankdata")
def test_auroc_with_ties():
    a = torch.randint(0, 8, (70,), generator=GENERATOR).double()
    b = torch.randint(2, 10, (40,), generator=GENERATOR).double()
    truth = np.r_[np.zeros(70), np.ones(40)]
    both = torch.cat([a, b])
    want = sklearn.metrics.roc_auc_score(truth, both)
    assert auroc(a, b).value == pytest.approx(want, abs=1e-12)
    assert auroc(b, a).value == pytest.approx(1 - want, abs=1e-12)
    assert midranks(both).tolist() == scipy.stats.rankdata(both).tolist()


@pytest.mark.truth("spread over 300 draws")
def test_auroc_errors():
    values, delong = [], []
    for _ in range(300):
        found = auroc(
            torch.randn(60, generator=GENERATOR), 1 + torch.randn(50, generator=GENERATOR)
        )
        values.append(found.value)
        delong.append(found.se)
    true = float(np.std(values))
    assert float(np.mean(delong)) == pytest.approx(true, rel=0.15)
    assert np.mean(values) == pytest.approx(scipy.stats.norm.cdf(1 / 2**0.5), abs=0.01)


@pytest.mark.truth("the variance of placements over pairs, by double loop")
def test_delong_by_hand():
    a, b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0])
    wins = (b[:, None] > a).double() + 0.5 * (b[:, None] == a).double()
    want = wins.mean(1).var() / 2 + wins.mean(0).var() / 3
    assert auroc(a, b).se == pytest.approx(math.sqrt(float(want)), abs=1e-12)


def test_auroc_edges():
    one = auroc(torch.tensor([0.0]), torch.tensor([math.inf]))
    assert one.value == 1.0
    assert math.isnan(one.se)
    with pytest.raises(InputError, match="without NaN"):
        auroc(torch.tensor([math.nan]), torch.tensor([1.0]))
    with pytest.raises(InputError, match="got 0 and 1"):
        auroc(torch.zeros(0), torch.ones(1))


@pytest.mark.truth("scipy.stats.false_discovery_control")
def test_benjamini_hochberg():
    p = torch.cat(
        [
            torch.rand(80, generator=GENERATOR).double(),
            torch.rand(20, generator=GENERATOR).double() * 1e-3,
        ]
    )
    want = scipy.stats.false_discovery_control(p.numpy()) <= 0.05
    found = benjamini_hochberg(p)
    assert found.tolist() == want.tolist()
    assert 20 <= int(found.sum()) < 60
    assert not benjamini_hochberg(torch.full((5,), 0.5)).any()


@pytest.mark.truth("scikit-learn's brute-force neighbours")
def test_nearest():
    x = torch.randn(50, 6, generator=GENERATOR) + 100
    y = torch.randn(300, 6, generator=GENERATOR) + 100
    reference = sklearn.neighbors.NearestNeighbors(n_neighbors=7, algorithm="brute")
    want, index = reference.fit(y.double().numpy()).kneighbors(x.double().numpy())
    distance, found = nearest(x, y, 7, chunk=16)
    np.testing.assert_allclose(distance, want, rtol=1e-9)
    assert found.tolist() == index.tolist()


@pytest.mark.truth("torch.cdist in float64")
def test_distance_chunks():
    x, y = torch.randn(33, 4, generator=GENERATOR), torch.randn(9, 4, generator=GENERATOR)
    pieces = list(distance_chunks(x, y, chunk=10))
    assert [start for start, _ in pieces] == [0, 10, 20, 30]
    whole = torch.cat([d for _, d in pieces])
    torch.testing.assert_close(whole, torch.cdist(x.double(), y.double()), rtol=1e-9, atol=1e-9)


@pytest.mark.truth("brute force without the own group")
def test_nearest_leaves_out_the_own_group():
    x = torch.randn(40, 3, generator=GENERATOR)
    group = torch.arange(40) // 4
    distance, found = nearest(x, x, 2, group=group, group2=group)
    assert bool((group[found] != group[:, None]).all())
    matrix = torch.cdist(x.double(), x.double()).masked_fill(group[:, None] == group, torch.inf)
    torch.testing.assert_close(distance, matrix.sort(dim=1).values[:, :2], rtol=1e-6, atol=1e-6)
    alone, _ = nearest(x[:4], x[:4], 1, group=group[:4], group2=group[:4])
    assert bool(torch.isinf(alone).all())


def test_equal_rows_have_distance_zero():
    x = torch.full((3, 2), 1e4) + 1e-3
    distance, _ = nearest(x, x, 1)
    assert distance.flatten().tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(InputError, match="between 1 and 3 rows"):
        nearest(x, x, 4)


@pytest.mark.truth("the share that was drawn from, over 400 samples")
@pytest.mark.parametrize(
    ("n_groups", "size", "share"), [(60, 50, 0.05), (200, 10, 0.05), (30, 3, 0.3)]
)
def test_the_interval_of_grouped_rows_covers(n_groups, size, share):
    draw = np.random.default_rng(0)
    group = np.repeat(np.arange(n_groups), size)
    covered = 0
    for _ in range(400):
        chance = draw.beta(share * 0.2, (1 - share) * 0.2, n_groups)  # rows of a group are alike
        low, high = grouped_share(draw.random(len(group)) < chance[group], group)
        covered += low <= share <= high
    assert covered >= 400 * 0.92


def test_rows_of_their_own_have_the_exact_interval():
    hits = np.arange(40) < 7
    assert grouped_share(hits, np.arange(40)[::-1]) == clopper_pearson(7, 40)
    assert grouped_share(np.zeros(40, bool), np.arange(40) // 4) == clopper_pearson(0, 10)
    assert grouped_share(hits, np.zeros(40, int)) == (0.0, 1.0)
