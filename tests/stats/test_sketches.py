import itertools

import pytest
import torch

from sonde.core.errors import InputError
from sonde.core.hashing import rank_key
from sonde.core.state import leaves
from sonde.stats import Coreset, FourierMoments, HashSample, Quantiles, TopK, median_sigma
from sonde.stats.fourier import FourierFeatures

GENERATOR = torch.Generator().manual_seed(11)


def _merged(statistic, columns, size):
    n = len(columns[0])
    states = [
        statistic.observe(*(c[a:b] for c in columns))
        for a, b in itertools.pairwise([*range(0, n, size), n])
    ]
    while len(states) > 1:
        states = [
            statistic.merge(*pair) if len(pair) == 2 else pair[0]
            for pair in (states[i : i + 2] for i in range(0, len(states), 2))
        ]
    return states[0]


@pytest.mark.truth("sorted rows")
@pytest.mark.parametrize("size", [20_000, 2500, 97])
def test_quantiles_within_bound(size):
    x = torch.randn(20_000, 2, dtype=torch.float64, generator=GENERATOR)
    statistic = Quantiles(64)
    state = _merged(statistic, (x,), size)
    ordered = x.sort(dim=0).values
    true = torch.arange(1, 20_001).double()[:, None].expand(-1, 2)
    worst = float((state.rank(ordered) - true).abs().max())
    assert worst <= statistic.bound(state)
    assert worst < 0.06 * 20_000
    assert sum(len(level) * 2**h for h, level in enumerate(state.levels)) == 20_000
    assert sum(len(level) for level in state.levels) < 64 * 11


@pytest.mark.truth("datasketches.kll_doubles_sketch with the same number of kept values")
def test_quantiles_as_good_as_datasketches():
    kll_doubles_sketch = pytest.importorskip("datasketches").kll_doubles_sketch
    x = torch.randn(20_000, 1, dtype=torch.float64, generator=GENERATOR)
    ours = _merged(Quantiles(256), (x,), 500)
    other = kll_doubles_sketch(200)
    other.update(x[:, 0].numpy())
    points = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)
    true = (x <= points).double().mean(0)
    theirs = torch.tensor([other.get_rank(float(p), True) for p in points])
    our_error = float((ours.rank(points[:, None])[:, 0] / 20_000 - true).abs().max())
    assert our_error < 0.015
    assert our_error < 3 * float((theirs - true).abs().max()) + 0.005


@pytest.mark.truth("sorted rows")
def test_quantiles_are_exact_while_few():
    x = torch.randn(100, 3, generator=GENERATOR)
    state = Quantiles(256).observe(x)
    q = torch.tensor([0.0, 0.25, 0.5, 1.0])
    want = x.sort(dim=0).values[[0, 24, 49, 99]].double()
    assert torch.equal(state.quantile(q), want)
    assert Quantiles(256).bound(state) == 0.0


@pytest.mark.truth("all rows")
def test_coreset_covers():
    x = torch.randn(2000, 2, dtype=torch.float64, generator=GENERATOR)
    draw = torch.randint(-(2**62), 2**62, (2000,), generator=GENERATOR)
    statistic = Coreset(50)
    whole, merged = statistic.observe(x, draw), _merged(statistic, (x, draw), 170)
    for state in (whole, merged):
        assert float(torch.cdist(x, state.rows).amin(1).max()) <= statistic.bound(state) + 1e-9
        assert state.rows.shape == (50, 2)
    assert whole.radius == pytest.approx(float(torch.cdist(x, whole.rows).amin(1).max()))
    assert whole.radius <= merged.radius
    assert whole.radius < 0.8  # 50 random rows leave gaps of more than 1


@pytest.mark.truth("twice the radius of the best two centres, by hand")
def test_coreset_picks_the_far_rows():
    x = torch.tensor([[0.0], [0.1], [10.0], [10.1], [20.0]])
    state = Coreset(3).observe(x, torch.arange(5))
    assert sorted(state.rows.flatten().tolist()) == [0.0, 10.0, 20.0]
    assert state.radius == pytest.approx(0.1, abs=1e-6)


@pytest.mark.truth("torch.topk of all rows")
def test_top_k():
    x = torch.randn(500, 3, generator=GENERATOR)
    x[::7] = x[0]
    draw = torch.randperm(500, generator=GENERATOR)
    ids = torch.stack([draw, draw], 1)
    position = torch.arange(500)
    state = _merged(TopK(9), (x, draw, ids, position), 33)
    torch.testing.assert_close(state.values, x.topk(9, dim=0).values)
    rows = state.position
    torch.testing.assert_close(x.gather(0, rows), state.values)
    assert torch.equal(draw[rows], state.draw)
    assert torch.equal(ids[rows], state.ids)
    ties = state.values[1:] == state.values[:-1]
    assert bool((state.draw[1:] > state.draw[:-1])[ties].all())


@pytest.mark.truth("the Gaussian kernel")
def test_fourier_features():
    x = torch.randn(40, 3, generator=GENERATOR)
    phi = FourierFeatures(1.5, 20_000)(x)
    want = torch.exp(-torch.cdist(x.double(), x.double()).square() / (2 * 1.5**2))
    torch.testing.assert_close(phi @ phi.T, want, atol=0.03, rtol=0)
    torch.testing.assert_close(phi.square().sum(1), torch.ones(40).double())


@pytest.mark.truth("mean of features of all rows")
def test_fourier_moments():
    x = torch.randn(90, 3, generator=GENERATOR)
    features = FourierFeatures(1.0, 8, seed=4)
    state = _merged(FourierMoments(features, scatter=True), (x,), 20)
    torch.testing.assert_close(state.mean, features(x).mean(0))
    torch.testing.assert_close(state.covariance, torch.cov(features(x).T, correction=0))


@pytest.mark.truth("three points on a line, by hand")
def test_median_sigma():
    assert median_sigma(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx((4 / 2) ** 0.5)
    with pytest.raises(InputError, match="at least 2 rows"):
        median_sigma(torch.zeros(1, 2))


@pytest.mark.truth("the rows of smallest draw, sorted; rows that came twice counted once")
@pytest.mark.parametrize("m", [5000, 700, 100])
def test_samples_that_wait_for_each_other_hold_each_row_once(m: int):
    x = torch.randn(700, 3, generator=torch.Generator().manual_seed(8))
    draw = torch.randperm(700, generator=torch.Generator().manual_seed(9)) - 350
    sample, parts = HashSample(m), [slice(0, 300), slice(200, 500), slice(500, 700), slice(0, 50)]
    states = [sample.observe(x[p], draw[p], draw[p], draw[p]) for p in parts]
    merged = sample.merge_all(states)
    smallest = torch.argsort(rank_key(draw))[:m]
    assert torch.equal(merged.rows, x[smallest])
    assert torch.equal(merged.draw, draw[smallest])
    assert merged.n == 850
    pairs = sample.merge(sample.merge(states[0], states[1]), sample.merge(states[2], states[3]))
    assert all(torch.equal(a, b) for a, b in zip(leaves(merged), leaves(pairs), strict=True))
