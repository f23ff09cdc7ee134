import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

import independent_neighbours
from fixture_rows import X
from sonde.core.errors import InputError
from sonde.measure import MLEDimension, mle_dimension


@pytest.mark.truth("neighbours from scipy's tree")
def test_known_values():
    x = np.random.default_rng(0).random((2000, 2))
    want = independent_neighbours.mle_dimension(x)
    assert mle_dimension(x).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("neighbours from scipy's tree and the formula row by row")
def test_is_the_harmonic_mean_of_the_rows_estimates():
    x = np.random.default_rng(0).standard_normal((200, 3))
    x = np.concatenate([x, x[:10]])
    far, _ = KDTree(x[:200]).query(x[:200], 8)
    local = 6 / np.log(far[:, -1:] / far[:, 1:-1]).sum(1)
    result = mle_dimension(x, k=7)
    assert result.value == pytest.approx(1 / np.mean(1 / local), rel=1e-10)
    assert result.n_copies == 10


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws; white rows are their own null")
def test_standard_error_and_null():
    found = [mle_dimension(np.random.default_rng(i).random((200, 3)), k=10) for i in range(16)]
    values, errors, nulls = (
        np.array([float(torch.as_tensor(v)) for v in column])
        for column in zip(*((r.value, r.se, r.null) for r in found), strict=True)
    )
    assert 0.7 < values.std(ddof=1) / errors.mean() < 1.4
    assert abs((values - nulls).mean()) < 4 * (values - nulls).std() / len(found) ** 0.5


@pytest.mark.truth("the dimension of a circle")
def test_a_circle_in_many_units_is_far_below_its_null():
    generator = torch.Generator().manual_seed(0)
    angle = 6.2832 * torch.rand(400, 1, generator=generator, dtype=torch.float64)
    x = torch.cat([torch.sin(angle), torch.cos(angle)], 1) @ torch.sin(
        torch.arange(20.0, dtype=torch.float64)
    ).reshape(2, 10)
    result = mle_dimension(x, k=10)
    assert float(result) == pytest.approx(1.0, abs=0.1)
    assert float(torch.as_tensor(result.null)) > 3


def test_with_few_groups_all_others_are_neighbours():
    group = np.arange(60) // 6
    result, fewer = (mle_dimension(X, group=group, k=k) for k in (10, 9))
    assert "few_rows" in result.flags
    assert float(result) == float(fewer)
    assert result.conventions["k"] == 9
    alone = mle_dimension(X[:12], group=np.arange(12) // 6, k=10)
    assert np.isnan(float(alone))


def test_wrong_k_is_named():
    with pytest.raises(InputError, match="MLEDimension: expected k of at least 2, got 1"):
        MLEDimension(1)
