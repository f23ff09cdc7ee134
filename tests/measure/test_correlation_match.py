import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import CorrelationMatch, correlation_match
from sonde.measure.correlation_match import one_to_one


@pytest.mark.truth("all pairings of the units")
def test_known_values():
    hard, soft = independent_pairs.correlation_match(X, Y)
    assert correlation_match(X, Y).value == pytest.approx(hard, rel=1e-9)
    assert correlation_match(X, Y, method="soft").value == pytest.approx(soft, rel=1e-9)


@pytest.mark.truth("60 of 100 units planted")
def test_planted_units_are_found_above_the_null():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5000, 100))
    y = rng.standard_normal((5000, 100))
    place = rng.permutation(100)
    y[:, place[:60]] = -3 * (0.8 * x[:, :60] + 0.6 * y[:, place[:60]]) + 1
    result = correlation_match(x, y)
    assert result.partner[:60].tolist() == place[:60].tolist()
    assert int((result.figure > 0.0535).sum()) == pytest.approx(60, abs=2)
    assert float(torch.as_tensor(result.null)) == pytest.approx(0.0366, abs=0.001)


@pytest.mark.truth("scikit-learn's lasso on the standardised rows")
def test_few_units_are_those_of_the_lasso():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((300, 12)) @ (np.eye(12) + 0.3 * rng.standard_normal((12, 12)))
    x = y @ (rng.standard_normal((12, 5)) * (rng.random((12, 5)) < 0.3))
    x += 0.5 * rng.standard_normal(x.shape)
    result = correlation_match(x, y, method="sparse", penalty=0.15)
    zx, zy = ((z - z.mean(0)) / z.std(0) for z in (x, y))
    for i in range(5):
        peer = Lasso(0.15, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(zy, zx[:, i])
        np.testing.assert_allclose(result.weight[i], peer.coef_, atol=1e-8)
        assert float(result.figure[i]) == pytest.approx(peer.score(zy, zx[:, i]), rel=1e-8)
    copied = np.concatenate([y, 2 * y[:, :3]], 1)
    again = correlation_match(x, copied, method="sparse", penalty=0.15)
    assert again.value == pytest.approx(result.value, rel=1e-6)


@pytest.mark.truth("three hidden variables, each shown by units of both sites")
def test_clusters_are_the_units_of_one_hidden_variable():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((1000, 3))
    one, two = np.arange(9) % 3, np.arange(12) // 4
    x = hidden[:, one] + 0.5 * rng.standard_normal((1000, 9))
    y = -hidden[:, two] + 0.5 * rng.standard_normal((1000, 12))
    result = correlation_match(x, y, method="clusters", n_clusters=3)
    both = torch.cat([result.cluster, result.cluster2])
    truth = np.concatenate([one, two])
    assert len(set(zip(both.tolist(), truth.tolist(), strict=True))) == 3
    assert float(result) == pytest.approx(1 / 1.25, abs=0.03)


@pytest.mark.essential
@pytest.mark.truth("unrelated rows whose units are alike within each site")
@pytest.mark.parametrize("method", ["hard", "soft", "sparse", "clusters"])
def test_null(method):
    rng = np.random.default_rng(0)
    mix, other = rng.standard_normal((2, 6, 6))
    found = [
        correlation_match(
            rng.standard_normal((60, 6)) @ mix,
            rng.standard_normal((60, 6)) @ other,
            method=method,
            n_clusters=2,
        )
        for _ in range(6)
    ]
    values = np.array([float(r) for r in found])
    null = np.mean([float(torch.as_tensor(r.null)) for r in found])
    # the null takes the correlations within the sample for those of all rows
    assert null == pytest.approx(values.mean(), abs=4 * values.std() / 6**0.5 + 0.01)


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws")
@pytest.mark.parametrize("method", ["hard", "soft", "sparse", "clusters"])
def test_standard_error(method):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(12):
        x = rng.standard_normal((300, 4))
        y = x[:, [0, 0, 1, 2, 3]] + rng.standard_normal((300, 5))
        found.append(correlation_match(x, y, method=method, n_clusters=4))
    spread = np.std([float(r) for r in found], ddof=1)
    ratio = spread / np.mean([float(torch.as_tensor(r.se)) for r in found])
    assert 0.65 < ratio < 1.5


@pytest.mark.truth("by hand: the greedy match has a mean of 0.5")
def test_the_assignment_is_the_best_of_all():
    r = torch.tensor([[0.9, -0.8], [0.8, 0.1]], dtype=torch.float64)
    found = one_to_one(r)
    assert found.partner.tolist() == [1, 0]
    assert float(found.figure.mean()) == pytest.approx(0.8)


def test_constant_units_take_no_part_and_constant_rows_have_no_value():
    x = torch.cat([X[:, :2], torch.ones(60, 1), X[:, 2:]], 1)
    result = correlation_match(x, Y)
    assert result.value == pytest.approx(correlation_match(X, Y).value, rel=1e-10)
    assert result.n_dead == (1, 0)
    assert int(result.partner[2]) == -1
    assert math.isnan(float(result.figure[2]))
    dead = correlation_match(torch.ones(60, 2), Y)
    assert "dead" in dead.flags
    assert math.isnan(float(dead))


def test_wrong_parameters_are_named():
    with pytest.raises(InputError, match="expected a penalty above 0, got 0"):
        CorrelationMatch("sparse", penalty=0.0)
    with pytest.raises(InputError, match="n_clusters of at least 1, got 0"):
        CorrelationMatch("clusters", n_clusters=0)
