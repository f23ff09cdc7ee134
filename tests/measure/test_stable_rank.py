import numpy as np
import pytest

import independent_spectra
from fixture_rows import X
from measure.digits import DIGITS
from sonde.measure import stable_rank


@pytest.mark.truth("norms of the rows in numpy")
@pytest.mark.parametrize("rows", [X, DIGITS])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, source):
    want = independent_spectra.stable_rank(rows)
    assert stable_rank(rows, source=source).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("simulated white rows")
@pytest.mark.parametrize(("n", "dim"), [(400, 40), (40, 160)])
def test_null(n, dim):
    rng = np.random.default_rng(0)
    found = [stable_rank(rng.standard_normal((n, dim))) for _ in range(5)]
    assert np.mean([float(r) for r in found]) == pytest.approx(found[0].null, rel=0.08)


def test_null_of_two_rows_is_one_direction():
    assert stable_rank(np.random.default_rng(0).standard_normal((2, 5))).null == 1.0
