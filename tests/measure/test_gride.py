import numpy as np
import pytest
import torch

import independent_neighbours
from fixture_rows import X
from sonde.core.errors import InputError
from sonde.measure import Gride, gride, two_nn
from sonde.measure.gride import _beta_dimension, _plateau


@pytest.mark.truth("neighbours from scipy's tree, and the root of the likelihood's slope")
def test_known_values():
    x = np.random.default_rng(0).random((1600, 2))
    result = gride(x, largest=8)
    assert result.rank.tolist() == [1, 2, 4, 8]
    want = [independent_neighbours.gride(x, rank) for rank in (2, 4, 8)]
    assert result.dimension[1:].tolist() == pytest.approx(want, rel=1e-8)
    assert result.plateau == (1, 8)
    assert result.value == pytest.approx(float(result.dimension.mean()), rel=1e-12)


@pytest.mark.truth("ratios drawn from the law itself, with dimension 7")
def test_the_likelihood_finds_the_dimension_of_its_own_draws():
    mu = np.random.default_rng(0).beta(4, 4, 20_000) ** (-1 / 7)
    found = _beta_dimension(torch.log(torch.as_tensor(mu)), 4)
    assert float(found) == pytest.approx(6.9757208246, rel=1e-8)


@pytest.mark.truth("a sheet with noise: three dimensions near by, two farther away")
def test_noise_is_seen_near_by_and_the_sheet_farther_away():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random((1000, 2)), 0.005 * rng.standard_normal((1000, 1))], 1)
    result = gride(x, largest=16)
    assert float(result.dimension[0]) > 2.25
    assert float(result) == pytest.approx(2.0, abs=0.15)
    assert result.plateau[0] >= 4
    chart = result.chart()
    assert len(chart["data"]["values"]) == 10


def test_the_first_scale_is_two_nn_without_its_correction():
    n = len(X)
    found = gride(X, largest=1)
    assert found.value * (n - 1) / n == pytest.approx(two_nn(X).value, rel=1e-8)
    assert gride(torch.cat([X, X[:7]]), largest=1).n_copies == 7


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws; white rows are their own null")
def test_standard_error_and_null():
    found = [gride(np.random.default_rng(i).random((120, 3)), largest=2) for i in range(12)]
    curves, errors, nulls = (
        torch.stack(column).numpy()
        for column in zip(*((r.dimension, r.error, r.shuffled) for r in found), strict=True)
    )
    assert (curves.std(0, ddof=1) / errors.mean(0) > 0.5).all()
    assert (curves.std(0, ddof=1) / errors.mean(0) < 1.4).all()
    gap = curves - nulls
    assert (abs(gap.mean(0)) < 4 * gap.std(0) / len(found) ** 0.5).all()


@pytest.mark.truth("by hand")
def test_the_longest_run_is_the_plateau_and_of_two_the_nearer():
    assert _plateau(torch.tensor([9.0, 5.0, 5.1, 5.0, 2.0, 2.0])) == (1, 3)
    assert _plateau(torch.tensor([9.0, 5.0, 3.0])) == (0, 0)


def test_scales_without_groups_enough_do_not_appear():
    assert gride(X[:20]).rank.tolist() == [1, 2, 4, 8]
    few = gride(X[:2])
    assert "few_rows" in few.flags
    assert np.isnan(float(few))


def test_wrong_rank_is_named():
    with pytest.raises(InputError, match="Gride: expected largest to be a power of 2"):
        Gride(3)
