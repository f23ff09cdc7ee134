import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.feature_selection import mutual_info_regression

from fixture_rows import X, Y
from independent_information import ksg, normal_information, normal_information_bias
from sonde.core.errors import InputError
from sonde.measure import MutualInformation, mutual_information
from sonde.measure._ksg import _counts_in_float32, ksg_terms


def _pair(seed, n, rho=0.75):
    a, b = np.random.default_rng(seed).standard_normal((2, n, 1))
    return a, rho * a + np.sqrt(1 - rho**2) * b


@pytest.mark.essential
@pytest.mark.truth("numpy's correlation, and neighbours counted row by row")
def test_known_values():
    a, b = _pair(0, 400)
    want = normal_information(a, b)
    assert mutual_information(a, b, debias=False).value == pytest.approx(want, rel=1e-9)
    for k, other in ((3, b), (4, b[::-1].copy())):
        want = ksg(a, other, k)
        found = mutual_information(a, other, estimator="ksg", k=k)
        assert found.value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("numpy's log determinants")
def test_gaussian_is_a_difference_of_log_determinants():
    rows = np.hstack([X, Y]).astype(float)
    log = [np.linalg.slogdet(np.cov(z.T))[1] for z in (rows[:, :5], rows[:, 5:], rows)]
    result = mutual_information(X, Y)
    assert result.raw == pytest.approx((log[0] + log[1] - log[2]) / 2, rel=1e-9)
    assert result.value == pytest.approx(result.raw - result.bias, rel=1e-12)
    assert result.null == 0.0


@pytest.mark.truth("scipy's digamma function, and simulated unrelated rows")
def test_the_gaussian_bias_is_exact():
    rng = np.random.default_rng(0)
    found = [mutual_information(*rng.standard_normal((2, 100, 5))) for _ in range(30)]
    assert found[0].bias == pytest.approx(normal_information_bias(100, 5, 5), rel=1e-9)
    values = [float(r) for r in found]
    assert np.mean(values) == pytest.approx(0.0, abs=4 * np.std(values) / np.sqrt(30))
    wide = mutual_information(*rng.standard_normal((2, 1000, 64)), debias=False)
    assert wide.null == pytest.approx(normal_information_bias(1000, 64, 64), rel=1e-9)


@pytest.mark.truth("scipy's ranks and normal quantiles")
def test_copula_is_the_gaussian_of_normal_scores():
    a, b = _pair(1, 500)
    a[:40] = 0.3  # equal values share a rank
    scores = [scipy.stats.norm.ppf(scipy.stats.rankdata(z, axis=0) / 501) for z in (a, b)]
    found = mutual_information(np.exp(a), b**3, estimator="copula")
    assert found.value == pytest.approx(mutual_information(*scores).value, rel=1e-9)


@pytest.mark.truth("scikit-learn, and a double loop over rows of other groups")
def test_neighbours():
    a, b = _pair(2, 300)
    found = mutual_information(a, b, estimator="ksg", k=3, scale="std").value
    peer = mutual_info_regression(a, b[:, 0], n_neighbors=3, random_state=0)[0]
    assert found == pytest.approx(peer, rel=1e-6)
    x, y, group = np.hstack([a, b**2])[:90], b[:90], np.repeat(np.arange(30), 3)
    terms = []
    for i in range(90):
        other = group != group[i]
        dx, dy = np.abs(x - x[i]).max(1)[other], np.abs(y - y[i]).max(1)[other]
        reach = np.sort(np.maximum(dx, dy))[3]
        near = scipy.special.digamma([np.sum(d < reach) + 1 for d in (dx, dy)]).sum()
        terms.append(scipy.special.digamma(4) + scipy.special.digamma(88) - near)
    found = mutual_information(x, y, group=group, estimator="ksg")
    assert found.value == pytest.approx(np.mean(terms), rel=1e-9)


@pytest.mark.truth("unrelated documents of alike rows")
@pytest.mark.parametrize("estimator", ["copula", "ksg"])
def test_alike_rows_of_unrelated_documents_tell_nothing(estimator):
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(64), 6)
    x, y = rng.standard_normal((2, 64, 2))[:, group] + 0.1 * rng.standard_normal((2, 384, 2))
    found, alone = (
        mutual_information(x, y, group=g, estimator=estimator, debias=False) for g in (group, None)
    )
    error = float(torch.as_tensor(found.se))
    assert float(found) == pytest.approx(found.bias, abs=2 * error)
    if alone.se is None:  # copies of rows look like a function
        assert "deterministic" in alone.flags
    spread = 0.0 if alone.se is None else float(torch.as_tensor(alone.se))
    assert float(alone) > alone.bias + 2 * spread


@pytest.mark.truth("the spread over fresh draws")
@pytest.mark.parametrize(("estimator", "n_draws"), [("gaussian", 30), ("copula", 10), ("ksg", 10)])
def test_standard_error(estimator, n_draws):
    found = [mutual_information(*_pair(i, 200), estimator=estimator) for i in range(n_draws)]
    ratio = np.mean([float(torch.as_tensor(r.se)) for r in found]) / np.std(
        [float(r) for r in found]
    )
    assert 0.7 < ratio < 1.7


def test_what_the_number_cannot_bear_is_flagged():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 100, 4))
    assert "high_dim" in mutual_information(x, y, estimator="ksg").flags
    for estimator in ("gaussian", "copula"):
        few = mutual_information(x[:8], y[:8], estimator=estimator)
        assert np.isnan(few.value)
        assert "few_rows" in few.flags
        for n in (9, 10):  # two rows more than units are enough
            flags = mutual_information(x[:n], y[:n], estimator=estimator).flags
            assert ("few_rows" in flags) == (n == 9)
    for estimator in ("gaussian", "copula", "ksg"):
        dead = mutual_information(np.ones((60, 2)), Y, estimator=estimator)
        assert np.isnan(dead.value)
        assert "dead" in dead.flags
    whole = rng.integers(0, 2, (200, 1)).astype(float)  # ties everywhere
    assert float(mutual_information(whole, whole, estimator="ksg")) > 0.5


def test_wrong_parameters_are_named():
    with pytest.raises(InputError, match="MutualInformation: expected k of at least 1"):
        MutualInformation(k=0)


@pytest.mark.truth("brute force over all pairs in float64")
def test_ksg_counts_are_those_of_float64_where_float32_cannot_tell():
    x, y = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(0)).double().mul(4).exp()
    group, k = torch.arange(300), 4
    gaps = [torch.cdist(z, z, p=torch.inf).fill_diagonal_(torch.inf) for z in (x, y)]
    reach = torch.maximum(*gaps).sort(1).values[:, k - 1 : k]
    near = [torch.digamma((gap < reach).sum(1).double() + 1) for gap in gaps]
    ends = torch.digamma(torch.tensor([float(k), 300.0]).double()).sum()
    assert not _counts_in_float32(x, y, group, k)[1].all()
    torch.testing.assert_close(ksg_terms(x, y, group, k), ends - near[0] - near[1])


@pytest.mark.slow
@pytest.mark.truth("rows on two curves whose places have known information")
def test_codes_of_curves():
    draw = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 1500, generator=draw, dtype=torch.float64)
    places = torch.stack([a, 0.9 * a + math.sqrt(1 - 0.81) * b])
    turn = (torch.special.ndtr(places) * 4.5).unsqueeze(2)  # a bend that no line follows
    x, y = torch.cat([turn.cos(), turn.sin()], 2) @ torch.randn(2, 7, generator=draw).double()
    want = -0.5 * math.log(1 - 0.81)
    form = {"estimator": "ksg", "components": 1}
    curved = mutual_information(x, y, **form, compressor="autoencoder")
    straight = mutual_information(x, y, **form)
    assert min(curved.kept) > 0.9 > max(straight.kept)
    assert float(curved) == pytest.approx(want, abs=0.06)
    assert float(straight) < want - 0.15
