"""The same rows on both sides: p-values come from what changes inside pairs."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from detect.shift_rates import assert_right_rate, side_of
from sonde.core.shift import Side
from sonde.detect import (
    MMD,
    ClassifierTwoSample,
    FourierMMD,
    Frechet,
    Hotelling,
    ReconstructionShift,
    SubspaceShift,
    UnitShift,
)
from sonde.detect._sides import two_samples
from sonde.detect._tails import signs_tail
from sonde.stats import HashSample

SAMPLED = [
    Frechet(permutations=99),
    MMD(permutations=99),
    ClassifierTwoSample(),
    ReconstructionShift(permutations=99),
    SubspaceShift(rank=1, permutations=99),
    Hotelling(),
    UnitShift(),
    UnitShift(test="js"),
    UnitShift(test="mean"),
]


def _rows(seed, n=60, dim=4):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def side(shift, x, draw=None, data="", sample=True) -> Side:
    """Return a side that holds a sample too, as a bundle's does."""
    draw = torch.arange(len(x)) * 977 if draw is None else draw
    made = side_of(shift, x, draw)
    kept = {"sample": HashSample().observe(x, draw, draw, draw)} if sample else {}
    return replace(made, states={**made.states, **kept}, data=data)


@pytest.mark.truth("rows with their ids")
def test_rows_are_matched_whatever_their_order():
    x, y = _rows(0), _rows(1)
    back = torch.arange(len(x)).flip(0)
    draw = torch.from_numpy(np.random.default_rng(2).permutation(len(x)))
    rows = two_samples("test", side(MMD(), x, draw), side(MMD(), y[back], draw[back]))
    assert rows.paired
    at = {tuple(row): i for i, row in enumerate(x.tolist())}
    for one, other in zip(rows.x.tolist(), rows.y.tolist(), strict=True):
        assert other == y[at[tuple(one)]].tolist()
    assert not two_samples("test", side(MMD(), x, draw), side(MMD(), y[:59], draw[:59])).paired


@pytest.mark.truth("the sign test: all 2**10 signs of ten differences")
def test_hotelling_of_pairs_counts_signs():
    x = _rows(2, 10, 2)
    y = x + 0.5 * _rows(3, 10, 2) + 0.3
    found = side(Hotelling(), x).compare(side(Hotelling(), y))
    gap = (y - x).numpy()
    metric = np.linalg.inv(gap.T @ gap)

    def size(signs):
        total = np.array(signs) @ gap
        return total @ metric @ total

    values = [size(signs) for signs in product((1, -1), repeat=10)]
    assert found.p == pytest.approx(np.mean(np.array(values) >= values[0] - 1e-12), abs=0.04)
    assert found.null is None


@pytest.mark.truth("all 2**10 signs, and the shrunk metric from its formula")
def test_fewer_pairs_than_dimensions_are_compared_in_a_shrunk_metric():
    x = _rows(12, 10, 15)
    y = x + _rows(13, 10, 15) * torch.logspace(0, 3, 15) + 0.3
    found = side(Hotelling(), x).compare(side(Hotelling(), y))
    gap = (y - x).numpy()
    gap /= np.sqrt((gap**2).mean(0))
    second = gap.T @ gap / 10
    square = (second**2).mean()
    weight = min(1.0, (square + 1) / (11 * (square - 1 / 15)))
    metric = np.linalg.inv((1 - weight) * second + weight * np.eye(15))
    sums = np.array(list(product((1, -1), repeat=10))) @ gap
    values = (sums @ metric * sums).sum(1)
    assert found.p == pytest.approx(np.mean(values >= values[0] - 1e-9), abs=0.04)
    assert "few_rows" in found.flags


@pytest.mark.truth("planted moves of the mean, and pairs exchanged at random")
def test_fewer_pairs_than_dimensions_have_power_and_no_false_alarms():
    seen, alarms = 0, []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, noise = (torch.from_numpy(rng.standard_normal((20, 30))) for _ in range(2))
        far = x + noise + 0.4
        seen += side(Hotelling(), x).compare(side(Hotelling(), far)).p <= 0.05
        coin = torch.from_numpy(rng.random((20, 1)) < 0.5)
        one, other = torch.where(coin, x, far), torch.where(coin, far, x)
        alarms.append(side(Hotelling(), one).compare(side(Hotelling(), other)).p)
    assert seen == 30
    assert sum(p <= 0.2 for p in alarms) <= stats.binom.ppf(0.999, 30, 0.2)


@pytest.mark.truth("all 2**10 signs: no level is exceeded")
@pytest.mark.parametrize("dim", [1, 3, 20])
def test_the_bound_under_signs_is_one(dim):
    white = _rows(14, 10, dim)
    signs = torch.tensor(list(product((1.0, -1.0), repeat=10)), dtype=torch.float64)
    p = np.sort([signs_tail(white * s[:, None]) for s in signs])
    assert (p * len(p) >= np.arange(1, len(p) + 1)).all()
    assert signs_tail(white + 9) < 0.1


@pytest.mark.truth("numpy.linalg.det at 999 tilts, and Hoeffding's bound of alternate rows")
@pytest.mark.parametrize(("n", "dim"), [(40, 3), (3, 3), (4, 9)])
def test_the_bound_under_signs_equals_its_formula(n, dim):
    white = (_rows(17, n, dim) + 0.5) * torch.linspace(0.05, 1.0, dim) / n**0.5
    w, total = white.numpy(), white.numpy().sum(0)
    second = w.T @ w
    tilts = np.arange(1, 1000) / 1000 / np.linalg.norm(w, 2) ** 2
    moments = min(
        np.exp(-a * total @ total / 2) / np.linalg.det(np.eye(dim) - a * second) ** 0.5
        for a in tilts
    )
    along = w[1::2] @ w[::2].sum(0)
    halves = np.exp(-(along.sum() ** 2) / (2 * (along**2).sum())) if along.sum() > 0 else 1.0
    assert signs_tail(white) == pytest.approx(min(1.0, 2 * min(moments, halves)), rel=1e-9)


@pytest.mark.truth("scipy.stats.ttest_rel")
def test_means_of_pairs_are_students():
    x = _rows(4)
    y = x + 0.1 * _rows(5) + torch.tensor([0.0, 0.02, 0.1, 0.0])
    found: Any = side(UnitShift(test="mean"), x).compare(side(UnitShift(test="mean"), y))
    want: Any = stats.ttest_rel(y.numpy(), x.numpy())
    np.testing.assert_allclose(found.unit_p, want.pvalue, rtol=1e-6)


@pytest.mark.truth("scipy.stats.binomtest of discordant pairs (McNemar) at numpy's quantiles")
def test_units_of_pairs_go_on_where_no_exchange_reaches():
    x = _rows(15, 100)
    y = x + 0.1 * _rows(16, 100)
    y[:, 2] = y[:, 2].sign()
    found: Any = side(UnitShift(), x).compare(side(UnitShift(), y))
    one, other = x[:, 2].numpy(), y[:, 2].numpy()
    best = 1.0
    for border in np.quantile(np.concatenate([one, other]), np.arange(1, 16) / 16):
        up = int(((other <= border) & (one > border)).sum())
        down = int(((other > border) & (one <= border)).sum())
        best = min(best, stats.binomtest(up, up + down).pvalue if up + down else 1.0)
    assert float(found.unit_p[2]) == pytest.approx(15 * best, rel=1e-6)
    assert found.p == pytest.approx(4 * 15 * best, rel=1e-6)
    assert found.p < 1e-5
    assert min(found.unit_p[[0, 1, 3]]) >= 1 / 1000


@pytest.mark.truth("scipy.stats.binomtest of discordant pairs (McNemar)")
def test_the_classifier_counts_pairs_that_it_splits():
    x = _rows(6, 200)
    y = x + 0.5 * _rows(7, 200) + torch.tensor([0.3, 0.0, 0.0, 0.0])
    found: Any = side(ClassifierTwoSample(), x).compare(side(ClassifierTwoSample(), y))
    rows = two_samples("test", side(MMD(), x), side(MMD(), y))
    origin = (rows.x[:100].mean(0) + rows.y[:100].mean(0)) / 2
    first, second = ((r[100:] - origin) @ found.axis > 0 for r in (rows.x, rows.y))
    right, wrong = int((second & ~first).sum()), int((first & ~second).sum())
    want = stats.binomtest(right, right + wrong, alternative="greater").pvalue
    assert found.p == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("shift", SAMPLED, ids=repr)
def test_a_small_change_of_every_row_is_seen_and_none_is_not(shift):
    x = _rows(8, 120) * torch.tensor([3.0, 1.0, 1.0, 0.2])
    y = x @ torch.linalg.qr(torch.eye(4, dtype=x.dtype) + 0.15 * _rows(9, 4))[0].abs() + 0.3
    assert side(shift, x).compare(side(shift, y)).p <= 0.05
    assert side(shift, x).compare(side(shift, x.clone())).p == 1.0


@pytest.mark.truth("the uniform distribution of p-values where sides are exchanged at random")
@pytest.mark.parametrize("shift", SAMPLED, ids=repr)
def test_false_alarms_of_pairs_are_no_more_than_promised(shift):
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = torch.from_numpy(rng.standard_t(4, (50, 4)))
        y = x + torch.from_numpy(rng.standard_t(3, (50, 4))) * x[:, :1].abs() + 0.4
        coin = torch.from_numpy(rng.random(50) < 0.5)[:, None]
        one, other = torch.where(coin, x, y), torch.where(coin, y, x)
        found.append(side(shift, one).compare(side(shift, other)).p)
    assert_right_rate(found, conservative=True)


@pytest.mark.parametrize("shift", [Hotelling(), UnitShift(), UnitShift(test="js")], ids=repr)
def test_pairs_without_a_sample_have_no_p_value(shift):
    x = _rows(10)
    first, second = (side(shift, rows, data="same", sample=False) for rows in (x, x + 1))
    found = first.compare(second)
    assert np.isnan(found.p)
    assert "paired" in found.flags
    assert first.compare(first).p == 1.0


def test_fourier_features_of_pairs_have_no_p_value():
    shift = FourierMMD(sigma=2.0, m=16)
    for data, sample in (("same", False), ("", True)):
        first, second = (side(shift, _rows(11) + move, None, data, sample) for move in (0, 1))
        assert first.compare(second).flags == ("paired",)
        assert first.compare(first).p == 1.0
