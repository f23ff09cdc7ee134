import numpy as np
import pytest

import independent_spectra
from fixture_rows import X
from measure.digits import DIGITS
from narrow import expect
from sonde.measure import participation_ratio


@pytest.mark.truth("inner products of the rows in numpy")
@pytest.mark.parametrize("rows", [X, DIGITS])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, source):
    want = independent_spectra.participation_ratio(rows)
    assert participation_ratio(rows, source=source).value == pytest.approx(want, rel=1e-9)


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
