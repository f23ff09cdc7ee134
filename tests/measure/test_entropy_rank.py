import numpy as np
import pytest

import independent_spectra
from fixture_rows import X
from measure.digits import DIGITS
from sonde.measure import entropy_rank


@pytest.mark.truth("singular values of the rows in numpy")
@pytest.mark.parametrize("rows", [X, DIGITS])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, source):
    want = independent_spectra.entropy_rank(rows)
    assert entropy_rank(rows, source=source).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("mean entropy of covariances of independent normal rows, over draws")
@pytest.mark.parametrize(("n", "dim"), [(40, 25), (15, 30)])
def test_the_null_is_the_rank_of_rows_without_structure(n, dim):
    draw, found = np.random.default_rng(1), []
    for _ in range(200):
        share = np.linalg.eigvalsh(np.cov(draw.normal(size=(n, dim)).T)).clip(1e-15)
        share = share / share.sum()
        found.append(-(share * np.log(share)).sum())
    null = entropy_rank(draw.normal(size=(n, dim))).null
    assert null == pytest.approx(np.exp(np.mean(found)), rel=0.03)
