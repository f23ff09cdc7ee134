import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA as PeerCCA

import independent_pairs
from fixture_rows import X, Y
from sonde.measure import CCA, cca
from sonde.measure._canonical import wishart


@pytest.mark.truth("angles between the spans of the units in numpy")
def test_known_values():
    result = cca(X, Y)
    want = independent_pairs.canonical_correlations(X, Y)
    np.testing.assert_allclose(result.correlations, want, rtol=1e-9)
    assert result.value == pytest.approx(want.mean(), rel=1e-9)
    assert result.mean_square == pytest.approx(np.square(want).mean(), rel=1e-9)


@pytest.mark.truth("scikit-learn's iterative CCA")
def test_first_correlation_is_that_of_the_peer():
    one, two = PeerCCA(1, scale=False, tol=1e-12, max_iter=5000).fit_transform(X.numpy(), Y.numpy())
    peer = np.corrcoef(one[:, 0], two[:, 0])[0, 1]
    assert float(cca(X, Y).correlations[0]) == pytest.approx(peer, rel=1e-6)


@pytest.mark.essential
@pytest.mark.truth("simulated unrelated rows")
def test_nulls_are_what_unrelated_rows_give():
    rng = np.random.default_rng(0)
    found = [cca(rng.standard_normal((120, 8)), rng.standard_normal((120, 5))) for _ in range(40)]
    assert np.mean([float(r) for r in found]) == pytest.approx(
        float(torch.as_tensor(found[0].null)), rel=0.03
    )
    squares = np.mean([r.mean_square for r in found])
    assert squares == pytest.approx(found[0].mean_square_null, rel=0.06)
    assert found[0].mean_square_null == pytest.approx(8 / 119)  # closed form
    assert found[0].flags == ()


@pytest.mark.truth("the spread over fresh draws")
def test_standard_error():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(30):
        x = rng.standard_normal((600, 3))
        found.append(cca(x, x + rng.standard_normal((600, 3))))
    spread = np.std([float(r) for r in found], ddof=1)
    assert np.mean([float(torch.as_tensor(r.se)) for r in found]) == pytest.approx(spread, rel=0.3)


def test_a_dead_unit_a_copied_unit_and_a_massive_one_do_no_harm():
    x = torch.cat([X, torch.ones(60, 1), 3 * X[:, :1]], dim=1)
    x[:, 1] *= 1e5
    result = cca(x, Y)
    assert result.value == pytest.approx(0.4425150449, rel=1e-6)
    assert result.ranks == (5, 4)
    assert "rank_deficient" in result.flags


def test_no_more_rows_than_units_is_flagged():
    result = cca(X[:5], Y[:5])
    assert float(result) == pytest.approx(1.0, abs=1e-6)
    assert "few_rows" in result.flags
    assert result.null == 1.0


def test_constant_rows_have_no_value():
    result = CCA().fit(torch.ones(60, 2), y=Y)
    assert np.isnan(float(result))
    assert "dead" in result.flags


@pytest.mark.truth("mean and log determinant of Wishart matrices in closed form")
@pytest.mark.parametrize("freedom", [4, 11])
def test_random_scatters_are_wishart(freedom):
    draw, dim = torch.Generator().manual_seed(0), 3
    found = torch.stack([wishart(freedom, dim, draw) for _ in range(4000)])
    mean = found.diagonal(dim1=1, dim2=2).mean(0)
    torch.testing.assert_close(mean / freedom, torch.ones(dim).double(), atol=0.03, rtol=0)
    half = (freedom - torch.arange(dim).double()) / 2
    wanted = torch.digamma(half).sum() + dim * np.log(2)
    assert float(found.logdet().mean()) == pytest.approx(float(wanted), abs=0.06)
