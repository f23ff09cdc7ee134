import itertools
from itertools import pairwise

import pytest
import torch

from sine_rows import sine_rows
from sonde.stats import BatchHsic, FourierFeatures, GroupedHsicSums, HsicSums, hsic_triple

CUTS = (0, 1, 13, 40, 60)


def _brute(x, y, group):
    """HSIC over distinct groups by its definition: draw groups, then a row in each."""
    k, m = x @ x.T, y @ y.T
    names = sorted(set(group.tolist()))
    rows = {g: torch.nonzero(group == g).flatten() for g in names}

    def mean(i, j, p, q):
        a, b, c, d = rows[i], rows[j], rows[p], rows[q]
        if (i, j) == (p, q):
            return (k[a][:, b] * m[a][:, b]).mean()
        if i == p:
            return (k[a][:, b].mean(1) * m[a][:, d].mean(1)).mean()
        return k[a][:, b].mean() * m[c][:, d].mean()

    two = torch.stack([mean(i, j, i, j) for i, j in itertools.permutations(names, 2)]).mean()
    three = torch.stack([mean(i, j, i, q) for i, j, q in itertools.permutations(names, 3)]).mean()
    four = torch.stack([mean(*t) for t in itertools.permutations(names, 4)]).mean()
    return two - 2 * three + four


def _merged(statistic, *columns, cuts=CUTS):
    states = [statistic.observe(*(c[a:b] for c in columns)) for a, b in pairwise(cuts)]
    total = states[0]
    for state in states[1:]:
        total = statistic.merge(total, state)
    return total


@pytest.mark.truth("numbers computed with numpy in float64")
@pytest.mark.parametrize(
    ("terms", "value"), [("xy", 0.1493931012), ("xx", 1.2485928410), ("yy", 1.4963316060)]
)
def test_sines(terms, value):
    x, y = sine_rows()
    assert float(HsicSums(terms).observe(x, y).hsic) == pytest.approx(value, rel=1e-8)
    assert float(_merged(HsicSums(terms), x, y).hsic) == pytest.approx(value, rel=1e-8)


@pytest.mark.truth("n x n Gram matrices with zero diagonal")
def test_gram_matrices():
    x, y = sine_rows()
    from_grams = hsic_triple(x, y)
    sums = torch.stack([HsicSums(t).observe(x, y).hsic for t in ("xy", "xx", "yy")])
    torch.testing.assert_close(sums, from_grams, rtol=1e-10, atol=1e-12)


@pytest.mark.truth("the same rows without the offset")
def test_references_survive_a_large_mean():
    x, y = sine_rows()
    far = float(_merged(HsicSums(), x + 1e4, y - 3e3).hsic)
    assert far == pytest.approx(0.1493931012, rel=1e-8)
    shift = torch.full((5,), 1e4).double(), torch.full((4,), -3e3).double()
    without = HsicSums().observe(x, y).moved(*shift)
    assert abs(float(without.hsic) / 0.1493931012 - 1) > 1e-4  # what a far reference costs


@pytest.mark.truth("the sums before the move")
def test_moving_the_reference_is_exact():
    x, y = sine_rows()
    for state in (
        HsicSums().observe(x, y),
        GroupedHsicSums().observe(x, y, torch.arange(60) // 3),
    ):
        shift = torch.linspace(-1, 1, 5).double(), torch.linspace(0.5, 2, 4).double()
        moved = state.moved(*shift)
        assert float(moved.hsic) == pytest.approx(float(state.hsic), rel=1e-12)
        assert not torch.allclose(moved.tilt_x, state.tilt_x)
        back = moved.moved(state.reference_x, state.reference_y)
        for name in ("cross", "tilt_x", "tilt_y", "squares", "square_x"):
            torch.testing.assert_close(
                getattr(back, name), getattr(state, name), rtol=1e-10, atol=1e-10
            )


def test_too_few_rows_are_nan():
    x, y = sine_rows()
    assert HsicSums().observe(x[:3], y[:3]).hsic.isnan()
    assert GroupedHsicSums().observe(x[:9], y[:9], torch.arange(9) // 3).hsic.isnan()
    assert not HsicSums().observe(x[:4], y[:4]).hsic.isnan()


@pytest.mark.truth("numbers computed with numpy in float64")
@pytest.mark.parametrize(
    ("terms", "value"), [("xy", 0.1379022674), ("xx", 1.2357992405), ("yy", 1.4949257425)]
)
def test_grouped_sines(terms, value):
    x, y = sine_rows()
    group = torch.arange(60) // 3
    assert float(GroupedHsicSums(terms).observe(x, y, group).hsic) == pytest.approx(value, rel=1e-8)
    merged = _merged(GroupedHsicSums(terms), x, y, group, cuts=(0, 3, 30, 60))
    assert float(merged.hsic) == pytest.approx(value, rel=1e-8)


@pytest.mark.truth("brute force over all tuples of distinct groups")
def test_uneven_groups():
    x, y = sine_rows()
    x, y, group = x[:14], y[:14], torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5])
    found = float(GroupedHsicSums().observe(x, y, group).hsic)
    assert found == pytest.approx(float(_brute(x, y, group)), rel=1e-10)


@pytest.mark.truth("HsicSums, which has groups of one row")
def test_groups_of_one_row():
    x, y = sine_rows()
    found = float(GroupedHsicSums().observe(x, y, torch.arange(60)).hsic)
    assert found == pytest.approx(0.1493931012, rel=1e-8)


@pytest.mark.truth("numbers computed with numpy in float64")
def test_batches_of_twenty():
    x, y = sine_rows()
    order, zero = torch.arange(60), torch.zeros(60, dtype=torch.int64)
    state = BatchHsic(20).observe(x, y, order, zero)
    want = torch.tensor([0.1868592919, 1.1113753124, 1.4181105684], dtype=torch.float64)
    torch.testing.assert_close(state.mean, want, rtol=1e-8, atol=1e-9)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    again = BatchHsic(20).observe(x[shuffled], y[shuffled], order[shuffled], zero)
    torch.testing.assert_close(again.mean, want, rtol=1e-8, atol=1e-9)


@pytest.mark.truth("standard deviation of the mean of three batches")
def test_error_of_batches():
    x, y = sine_rows()
    state = BatchHsic(20).observe(x, y, torch.arange(60), torch.zeros(60, dtype=torch.int64))
    values = torch.stack([hsic_triple(x[i : i + 20], y[i : i + 20])[0] for i in (0, 20, 40)])
    assert float(state.error_covariance[0, 0]) == pytest.approx(float(values.var() / 3), rel=1e-9)


def test_small_batches_are_skipped_and_counted():
    x, y = sine_rows()
    state = BatchHsic(8).observe(x[:11], y[:11], torch.arange(11), torch.zeros(11).long())
    assert (state.n, state.weight, state.skipped) == (1, 8, 3)
    none = BatchHsic(8).observe(x[:3], y[:3], torch.arange(3), torch.zeros(3).long())
    assert none.mean.isnan().all()


@pytest.mark.truth("exact Gaussian kernel matrices")
def test_random_features_estimate_the_kernel():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200, 16, dtype=torch.float64, generator=generator)
    k = torch.exp(-torch.cdist(x, x).square() / 32)
    k = k - torch.diag(k.diagonal())
    n, total = 200, k.sum()
    exact = (k * k).sum() + total**2 / ((n - 1) * (n - 2)) - 2 * k.sum(1).square().sum() / (n - 2)
    exact = float(exact / (n * (n - 3)))
    maps = [FourierFeatures(4.0, 64, seed) for seed in range(8)]
    found = {
        same: torch.stack(
            [HsicSums("xx", a, a if same else b).observe(x, x).hsic for a, b in pairwise(maps)]
        ).mean()
        for same in (True, False)
    }
    assert float(found[False]) == pytest.approx(exact, rel=0.05)
    assert float(found[True]) > exact * 1.3  # one map for both sides is biased upward
