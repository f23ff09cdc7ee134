import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel

from detect.shift_rates import assert_right_rate, comparisons, side_of
from sonde.core.errors import InputError
from sonde.detect import MMD

QUICK = MMD(permutations=99)


def _rows(seed, n, dim=4):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def _brute(x, y, sigma):
    kernel = lambda a, b: np.exp(-np.square(a - b).sum() / (2 * sigma**2))  # noqa: E731
    inner = [
        kernel(a, b) for v in (x, y) for i, a in enumerate(v) for j, b in enumerate(v) if i != j
    ]
    split = len(x) * (len(x) - 1)
    cross = [kernel(a, b) for a in x for b in y]
    return np.mean(inner[:split]) + np.mean(inner[split:]) - 2 * np.mean(cross)


@pytest.mark.truth("brute force over all pairs, and a number worked out by hand")
def test_matches_brute_force():
    found = MMD(sigma=1.0).between([[0.0], [1.0], [2.0]], [[1.0], [3.0]])
    assert float(found) == pytest.approx(-0.40387794, abs=1e-8)
    x, y = _rows(0, 13), _rows(1, 9) + 0.5
    assert float(MMD(sigma=1.5).between(x, y)) == pytest.approx(
        _brute(x.numpy(), y.numpy(), 1.5), rel=1e-9
    )


@pytest.mark.truth("sklearn.metrics.pairwise.rbf_kernel")
def test_matches_sklearns_kernel_and_permutations_of_rows():
    x, y = _rows(2, 8), _rows(3, 7) + 0.6
    pooled = np.vstack([x, y])
    kernel = rbf_kernel(pooled, gamma=1 / (2 * 4.0))
    np.fill_diagonal(kernel, 0)

    def value(order):
        k = kernel[np.ix_(order, order)]
        return k[:8, :8].sum() / 56 + k[8:, 8:].sum() / 42 - 2 * k[:8, 8:].mean()

    found = MMD(sigma=2.0, permutations=999).between(x, y)
    assert float(found) == pytest.approx(value(np.arange(15)), rel=1e-9)
    rng = np.random.default_rng(0)
    shuffled = [value(rng.permutation(15)) for _ in range(1500)]
    assert found.p == pytest.approx(np.mean(np.array(shuffled) >= float(found)), abs=0.05)


@pytest.mark.truth("sklearn.metrics.pairwise.rbf_kernel, and the mean over 4,000 permutations")
def test_the_biased_estimate_is_the_squared_distance_of_means_in_the_kernels_space():
    x, y = _rows(2, 8), _rows(3, 7) + 0.6
    kernel = rbf_kernel(np.vstack([x, y]), gamma=1 / (2 * 4.0))

    def value(order):
        k = kernel[np.ix_(order, order)]
        return k[:8, :8].mean() + k[8:, 8:].mean() - 2 * k[:8, 8:].mean()

    found = MMD(sigma=2.0, biased=True).between(x, y)
    assert float(found) == pytest.approx(value(np.arange(15)), rel=1e-9)
    rng = np.random.default_rng(0)
    mean = np.mean([value(rng.permutation(15)) for _ in range(1500)])
    assert found.null == pytest.approx(mean, rel=0.02)
    assert found.range[0] <= float(found) <= found.range[1]


@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
def test_false_alarms_are_as_many_as_promised():
    found = comparisons(QUICK, lambda seed: (_rows(seed, 25), _rows(10_000 + seed, 20)))
    assert_right_rate([c.p for c in found])
    values = np.array([float(c) for c in found])
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5


@pytest.mark.truth("planted shifts of mean and spread")
def test_power():
    for change in (lambda y: y + 0.7, lambda y: y * 2):
        found = comparisons(QUICK, lambda s, c=change: (_rows(s, 60), c(_rows(9_000 + s, 60))), 20)
        assert np.mean([c.p <= 0.05 for c in found]) > 0.85


@pytest.mark.truth("scipy.spatial.distance.pdist")
def test_the_width_is_the_median_distance():
    x, y = _rows(0, 30), _rows(1, 25)
    want = np.sort(pdist(np.vstack([x, y])) ** 2)
    found = QUICK.between(x, y).conventions["sigma"]
    assert found == pytest.approx((want[(len(want) - 1) // 2] / 2) ** 0.5, rel=1e-9)


def test_unchanged_by_rotation():
    q = torch.linalg.qr(_rows(5, 4))[0]
    x, y = _rows(0, 30), _rows(1, 30) + 0.4
    a, b = (
        side_of(QUICK, x @ m).compare(side_of(QUICK, y @ m)) for m in (torch.eye(4).double(), q)
    )
    assert (float(b), b.p) == pytest.approx((float(a), a.p), rel=1e-9)


def test_a_sample_is_said_and_equal_rows_are_dead():
    assert MMD(m=10, permutations=9).between(_rows(0, 30), _rows(1, 9)).flags == ("sampled",)
    same = QUICK.between(torch.ones(9, 2), torch.ones(7, 2))
    assert (same.flags, same.p, float(same)) == (("dead",), 1.0, 0.0)


def test_parameters_are_checked():
    with pytest.raises(InputError, match="MMD: expected sigma above 0"):
        MMD(sigma=-1.0)
