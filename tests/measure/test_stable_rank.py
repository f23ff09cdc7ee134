import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from fixture_rows import X
from narrow import expect
from sonde.measure import stable_rank

DIGITS = expect(Bunch, load_digits()).data


@pytest.mark.truth("digits computed independently from the definition")
@pytest.mark.parametrize(("rows", "want"), [(X, 4.619785297), (DIGITS, 6.7156490059)])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, want, source):
    assert stable_rank(rows, source=source).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("numpy and scipy on all rows in memory")
@pytest.mark.parametrize(("n", "dim"), [(500, 12), (20, 40), (3, 2)])
def test_formula(n, dim):
    x = np.random.default_rng(n).standard_normal((n, dim)) * np.linspace(0.2, 3.0, dim) + 1.0
    v = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))
    v = v[v > 1e-9 * v.max()]
    want = v.sum() / v.max()
    assert stable_rank(x).value == pytest.approx(want, rel=1e-7)
    assert stable_rank(x, source="sample").value == pytest.approx(want, rel=1e-7)


@pytest.mark.truth("simulated white rows")
def test_null_is_that_of_white_rows():
    draws = [np.random.default_rng(s).standard_normal((256, 64)) for s in range(6)]
    seen = np.mean([float(stable_rank(x)) for x in draws])
    assert stable_rank(draws[0]).null == pytest.approx(seen, rel=0.03)


def test_null_of_two_rows_is_one_direction():
    assert stable_rank(np.random.default_rng(0).standard_normal((2, 5))).null == 1.0


def test_unchanged_by_rotation_and_scale():
    q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    want = stable_rank(X).value
    assert stable_rank(-3.0 * X @ q).value == pytest.approx(want, rel=1e-9)
    assert stable_rank(X * torch.arange(1.0, 6.0)).value != pytest.approx(want, rel=1e-3)


def test_constant_rows_are_nan_and_dead():
    result = stable_rank(torch.zeros(10, 4))
    assert np.isnan(result.value)
    assert "dead" in result.flags


def test_few_rows_are_flagged():
    assert "few_rows" in stable_rank(X[:4]).flags
    assert "few_rows" in stable_rank(X[:4], source="sample").flags
