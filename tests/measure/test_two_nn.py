import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import independent_neighbours
from fixture_rows import X
from measure.digits import DIGITS
from sonde.core.errors import InputError
from sonde.measure import TwoNN, two_nn


@pytest.mark.truth("neighbours from scipy's tree, and a line fitted by numpy")
@pytest.mark.parametrize("dim", [2, 5])
def test_known_values(dim):
    x = np.random.default_rng(0).random((2000, dim))
    for fit in ("slope", "ml"):
        want = independent_neighbours.two_nn(x, fit)
        assert two_nn(x, fit=fit).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("all distances of digits by scipy")
def test_digits_and_their_prefixes():
    x = DIGITS
    far = np.sort(cdist(x, x), axis=1)[:, 1:3]
    want = (len(x) - 1) / np.log(far[:, 1] / far[:, 0]).sum()
    result = two_nn(x)
    assert result.value == pytest.approx(want, rel=1e-10)
    assert result.decimated[0] == result.value
    assert result.decimated[2] != result.decimated[1]
    assert float(torch.as_tensor(result.null)) == pytest.approx(24.5, abs=1.5)
    assert "high_dim" in result.flags


@pytest.mark.truth("each row once")
@pytest.mark.parametrize("fit", ["ml", "slope"])
def test_copies_are_left_out_and_counted(fit):
    result = two_nn(torch.cat([X, X[:20]]), fit=fit)
    assert result.n_copies == 20
    assert result.value == pytest.approx(two_nn(X, fit=fit).value, rel=1e-12)


@pytest.mark.truth("the dimension of the surface that documents lie on")
def test_rows_of_a_document_lie_together():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(300), 4)
    x = (rng.random((300, 2)) @ rng.standard_normal((2, 6)))[group]
    x += 1e-3 * rng.standard_normal((1200, 6))
    result = two_nn(x, group=group)
    assert result.n == 300
    assert abs(float(result) - 2) < 3 * float(torch.as_tensor(result.se))
    assert float(two_nn(x)) > 4


@pytest.mark.truth("the spread over fresh draws; white rows are their own null")
@pytest.mark.parametrize("fit", ["ml", "slope"])
def test_standard_error_and_null(fit):
    found = [two_nn(np.random.default_rng(i).random((200, 4)), fit=fit) for i in range(20)]
    values, errors, nulls = (
        np.array([float(torch.as_tensor(v)) for v in column])
        for column in zip(*((r.value, r.se, r.null) for r in found), strict=True)
    )
    assert 0.7 < values.std(ddof=1) / errors.mean() < 1.4
    assert abs((values - nulls).mean()) < 4 * (values - nulls).std() / len(found) ** 0.5


def test_equal_distances_constant_rows_and_too_few_rows_are_flagged():
    every = two_nn(torch.eye(20))
    assert np.isinf(float(every))
    assert every.flags == ("saturated",)
    plane = np.random.default_rng(0).random((200, 2))
    assert two_nn(plane).flags == ()
    assert "dead" in two_nn(torch.ones(20, 3)).flags
    assert "few_rows" in two_nn(X[:2]).flags
    noise = 1e4 + 2e-3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert "lost_precision" in two_nn(noise).flags


def test_an_empty_sample_is_refused():
    with pytest.raises(InputError, match="expected m of at least 1, got 0"):
        TwoNN(m=0).fit(X)
