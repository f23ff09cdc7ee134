import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from fixture_rows import X
from narrow import expect
from sonde.measure import participation_ratio

DIGITS = expect(Bunch, load_digits()).data


@pytest.mark.truth("digits computed independently from the definition")
@pytest.mark.parametrize(("rows", "want"), [(X, 4.9786192756), (DIGITS, 13.1685111701)])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, want, source):
    assert participation_ratio(rows, source=source).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("numpy and scipy on all rows in memory")
@pytest.mark.parametrize(("n", "dim"), [(500, 12), (20, 40), (3, 2)])
def test_formula(n, dim):
    x = np.random.default_rng(n).standard_normal((n, dim)) * np.linspace(0.2, 3.0, dim) + 1.0
    v = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))
    v = v[v > 1e-9 * v.max()]
    want = np.square(v.sum()) / np.square(v).sum()
    assert participation_ratio(x).value == pytest.approx(want, rel=1e-7)
    assert participation_ratio(x, source="sample").value == pytest.approx(want, rel=1e-7)


@pytest.mark.truth("simulated white rows")
def test_null_is_that_of_white_rows():
    draws = [np.random.default_rng(s).standard_normal((256, 64)) for s in range(6)]
    seen = np.mean([float(participation_ratio(x)) for x in draws])
    assert participation_ratio(draws[0]).null == pytest.approx(seen, rel=0.03)


@pytest.mark.truth("moments of the sums over simulated white rows")
@pytest.mark.parametrize(("n", "dim"), [(2, 5), (3, 5), (4, 2)])
def test_null_of_few_rows(n, dim):
    x = np.random.default_rng(n).standard_normal((20_000, n, dim))
    z = x - x.mean(1, keepdims=True)
    s = np.einsum("kna,knb->kab", z, z)
    total, square = np.trace(s, axis1=1, axis2=2), np.square(s).sum((1, 2))
    null = expect(float, participation_ratio(x[0]).null)
    assert null == pytest.approx(np.square(total).mean() / square.mean(), rel=0.02)
    assert null >= 1.0


def test_unchanged_by_rotation_and_scale():
    q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    want = participation_ratio(X).value
    assert participation_ratio(-3.0 * X @ q).value == pytest.approx(want, rel=1e-9)
    assert participation_ratio(X * torch.arange(1.0, 6.0)).value != pytest.approx(want, rel=1e-3)


def test_constant_rows_are_nan_and_dead():
    result = participation_ratio(torch.zeros(10, 4))
    assert np.isnan(result.value)
    assert "dead" in result.flags


def test_few_rows_are_flagged():
    assert "few_rows" in participation_ratio(X[:4]).flags
    assert "few_rows" in participation_ratio(X[:4], source="sample").flags
