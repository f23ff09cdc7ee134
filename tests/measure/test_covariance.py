import numpy as np
import pytest
import torch

import independent_spectra
from fixture_rows import X
from narrow import present
from sonde.measure import Covariance, covariance


@pytest.mark.truth("numpy.cov and the singular values of the rows in numpy")
def test_matches_numpy():
    result = covariance(X)
    np.testing.assert_allclose(result.covariance, np.cov(X, rowvar=False, bias=True), atol=1e-14)
    values = torch.linalg.eigvalsh(result.covariance).flip(0)
    want = independent_spectra.variances(X)
    np.testing.assert_allclose(values, want, rtol=1e-9)
    assert result.value == pytest.approx(want.sum(), rel=1e-9)
    assert covariance(X, scatter="diag").value == pytest.approx(want.sum(), rel=1e-9)


@pytest.mark.truth("variance of the same rows in float64")
def test_a_large_mean_does_not_destroy_the_variance():
    x = (X + 1e4).float()
    assert covariance(x).value == pytest.approx(
        float(x.double().var(0, correction=0).sum()), rel=1e-6
    )


def test_rounding_is_flagged():
    noise = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert "low_precision" in covariance(1.0 + 3e-7 * noise).flags
    assert "lost_precision" in covariance(1.0 + 1e-7 * noise).flags
    assert not covariance(1.0 + 1e-3 * noise).flags


def test_constant_rows_are_dead():
    assert covariance(torch.ones(8, 3)).flags == ("dead",)


def test_grouped_rows_have_a_larger_error():
    x = X.repeat_interleave(4, dim=0)
    group = torch.arange(60).repeat_interleave(4)
    alone = float(present(covariance(x, group=range(240)).se))
    assert float(present(covariance(x, group=group).se)) > 1.8 * alone


def test_reads_one_shared_statistic():
    assert list(Covariance().reads()) == ["moments"]
