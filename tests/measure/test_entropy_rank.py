import numpy as np
import pytest

from fixture_rows import X
from measure.digits import DIGITS
from sonde.measure import entropy_rank


@pytest.mark.truth("digits computed independently from the definition")
@pytest.mark.parametrize(("rows", "want"), [(X, 4.9892133238), (DIGITS, 20.5532513628)])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, want, source):
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
