import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

import independent_spectra
from fixture_rows import X
from narrow import expect
from sonde.core.errors import InputError
from sonde.measure import StableRank, spectrum


@pytest.mark.truth("singular values of the rows in numpy")
def test_known_values():
    want = independent_spectra.variances(X)
    for source in ("moments", "sample"):
        result = spectrum(X, source=source)
        np.testing.assert_allclose(result.value, want, rtol=1e-9)
        np.testing.assert_allclose(result.share, want / want.sum(), rtol=1e-9)


@pytest.mark.truth("numpy.linalg.svd")
def test_fewer_rows_than_dimensions():
    x = np.random.default_rng(1).standard_normal((10, 30))
    want = np.linalg.svd(x - x.mean(0), compute_uv=False)[:9] ** 2 / 10
    np.testing.assert_allclose(spectrum(x).value, want, rtol=1e-9)
    np.testing.assert_allclose(spectrum(x, source="sample").value, want, rtol=1e-9)


@pytest.mark.essential
@pytest.mark.truth("numpy.linalg.svd in float64, and of simulated white rows")
def test_float32_rows_fewer_than_dimensions():
    g = torch.Generator().manual_seed(0)
    x, white = torch.randn(2, 50, 400, generator=g)
    result = spectrum(x)
    value, null = expect(Tensor, result.value), expect(Tensor, result.null)
    rows, other = (v.double().numpy() - v.double().numpy().mean(0) for v in (x, white))
    want = np.linalg.svd(rows, compute_uv=False)[:49] ** 2 / 50
    np.testing.assert_allclose(value, want, rtol=1e-5)
    noise = np.linalg.svd(other, compute_uv=False)[:49] ** 2
    np.testing.assert_allclose(null, noise * want.sum() / noise.sum(), rtol=0.1)


@pytest.mark.truth("the number of directions, and the edge of the Marchenko-Pastur law")
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_float32_rows_of_three_directions(source):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 3, generator=g) @ torch.randn(3, 60, generator=g)
    result = spectrum(x, source=source)
    value, null = expect(Tensor, result.value), expect(Tensor, result.null)
    assert len(value) == 3
    assert "rank_deficient" in result.flags
    edge = float(value.sum()) / 60 * (1 + math.sqrt(60 / 600)) ** 2
    assert float(null[0]) == pytest.approx(edge, rel=0.05)


@pytest.mark.truth("the variance of rows on a line, by numpy")
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_rows_on_a_line_have_one_direction(source):
    place = np.random.default_rng(4).standard_normal(40)
    result = spectrum(np.outer(place, [1.0, -2.0, 0.5]) + 3.0, source=source)
    np.testing.assert_allclose(result.value, [5.25 * place.var()], rtol=1e-9)
    assert result.flags == ("rank_deficient",)


def test_missing_directions_are_left_out_and_flagged():
    x = torch.cat([X, X[:, :2]], dim=1)
    assert len(expect(Tensor, spectrum(x).value)) == 5
    assert "rank_deficient" in spectrum(x).flags


@pytest.mark.truth("simulated white rows")
def test_null_is_the_spectrum_of_white_rows():
    x = np.random.default_rng(2).standard_normal((800, 100))
    result = spectrum(x)
    value, null = expect(Tensor, result.value), expect(Tensor, result.null)
    np.testing.assert_allclose(value[10:90], null[10:90], rtol=0.06)


@pytest.mark.truth("quantiles of the Marchenko-Pastur law by scipy's quadrature and root finder")
@pytest.mark.parametrize(("n", "dim"), [(40, 6), (8, 30)])
def test_null_of_few_directions_is_the_law_of_white_rows(n, dim):
    rank = min(n - 1, dim)
    ratio = rank / max(n - 1, dim)
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2

    def above(edge):
        return quad(
            lambda v: math.sqrt((high - v) * (v - low)) / (2 * math.pi * ratio * v), edge, high
        )[0]

    shares = [(i + 0.5) / rank for i in range(rank)]
    want = np.array([brentq(lambda v, s=s: above(v) - s, low, high) for s in shares])
    result = spectrum(np.random.default_rng(3).standard_normal((n, dim)))
    value, null = expect(Tensor, result.value), expect(Tensor, result.null)
    np.testing.assert_allclose(null / value.sum(), want / want.sum(), rtol=4e-3)


def test_needed_directions():
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    result = spectrum(torch.cat([x, -x]))
    assert [result.needed(s) for s in (0.5, 9 / 14, 0.7, 1.0)] == [1, 1, 2, 3]


def test_constant_rows_are_nan_and_dead():
    result = spectrum(torch.ones(6, 2))
    assert math.isnan(float(result.value))
    assert "dead" in result.flags


def test_unknown_source_is_named():
    made = StableRank()
    object.__setattr__(made, "source", "rows")  # the test's own type checker would refuse the call
    with pytest.raises(InputError, match="StableRank: expected source 'moments' or 'sample'"):
        made.__post_init__()
