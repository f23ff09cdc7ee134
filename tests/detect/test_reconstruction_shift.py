from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from detect.shift_rates import assert_right_rate, comparisons
from sonde.core.errors import InputError
from sonde.detect import ReconstructionShift

QUICK = ReconstructionShift(permutations=99)
SCALE = torch.tensor([4.0, 3.0, 2.0, 0.5, 0.3, 0.2]).double()


def _rows(seed, n):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 6))) * SCALE


@pytest.mark.truth("sklearn.decomposition.PCA")
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_matches_sklearn(share):
    mix = torch.linalg.qr(torch.from_numpy(np.random.default_rng(9).standard_normal((6, 6))))[0]
    x, y = _rows(0, 80) @ mix, _rows(1, 60).flip(1) @ mix + 0.5
    x, y = 0.01 * x, 0.01 * y  # a total variance below 1
    pca = PCA(n_components=share, svd_solver="full").fit(x.numpy())
    found: Any = ReconstructionShift(keep=share).between(x, y)
    assert found.rank == pca.n_components_
    for rows, got in ((y, float(found)), (x, found.null)):
        lost = rows.numpy() - pca.inverse_transform(pca.transform(rows.numpy()))
        want = np.square(lost).sum(1).mean() / x.numpy().var(0).sum()
        assert got == pytest.approx(want, rel=1e-8)


@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
def test_false_alarms_are_as_many_as_promised():
    found = comparisons(QUICK, lambda seed: (_rows(seed, 40), _rows(10_000 + seed, 30)))
    assert_right_rate([c.p for c in found])


@pytest.mark.truth("as many dimensions as rows: no row judges itself")
def test_false_alarms_with_few_rows_and_one_heavy_direction():
    found = comparisons(QUICK, lambda s: (_rows(s, 8).exp(), _rows(9_000 + s, 8).exp()))
    assert_right_rate([c.p for c in found])


@pytest.mark.truth("a planted shift out of the subspace")
def test_power():
    moved = torch.tensor([0, 0, 0, 0.0, 0, 1.0]).double()
    found = comparisons(QUICK, lambda s: (_rows(s, 80), _rows(9_000 + s, 80) + 1.5 * moved), 20)
    assert np.mean([c.p <= 0.05 for c in found]) > 0.9


def test_rows_inside_the_subspace_are_no_shift():
    y = _rows(1, 80)
    y[:, 3:] = 0
    found: Any = QUICK.between(_rows(0, 80), y)
    assert found.p > 0.9
    assert float(found) < found.null


def test_constant_rows_and_wrong_shares():
    same: Any = QUICK.between(torch.ones(9, 2), torch.ones(8, 2))
    assert (same.flags, same.rank, same.p, float(same)) == (("dead",), 0, 1.0, 0.0)
    moved = QUICK.between(torch.ones(90, 2), torch.ones(80, 2) * 3)
    assert (moved.p, float(moved)) == (1 / 100, float("inf"))
    with pytest.raises(InputError, match=r"expected keep in \(0, 1\)"):
        ReconstructionShift(keep=1.0)
