import numpy as np
import pytest

import independent_pairs
from fixture_rows import X, Y
from sonde.core.errors import InputError
from sonde.measure import SVCCA, cca, svcca


@pytest.mark.truth("angles between principal components in numpy")
def test_known_values():
    assert svcca(X, Y).value == pytest.approx(independent_pairs.svcca(X, Y), rel=1e-9)
    narrow = svcca(X, Y, keep=0.8)
    assert narrow.ranks == (4, 4)
    assert narrow.value == pytest.approx(independent_pairs.svcca(X, Y, keep=0.8), rel=1e-9)


@pytest.mark.truth("canonical correlations of principal components by scikit-learn")
def test_is_cca_of_the_principal_components():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6)) * [5, 4, 3, 0.1, 0.1, 0.1]
    y = x @ rng.standard_normal((6, 6)) + rng.standard_normal((300, 6))
    kept = [PCA(0.9, svd_solver="full").fit_transform(rows) for rows in (x, y)]
    for scale in (1.0, 1e-7):
        result = svcca(scale * x, scale * y, keep=0.9)
        assert result.ranks == (kept[0].shape[1], kept[1].shape[1])
        assert result.value == pytest.approx(float(cca(*kept)), rel=1e-8)


def test_noise_of_small_variance_does_not_enter():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((400, 3))
    x, y = (np.hstack([signal, 0.01 * rng.standard_normal((400, 20))]) for _ in range(2))
    assert svcca(x, y).value == pytest.approx(1.0, abs=1e-3)
    assert float(cca(x, y)) < 0.5


def test_wrong_share_is_named():
    with pytest.raises(InputError, match=r"SVCCA: expected keep in \(0, 1\]"):
        SVCCA(keep=1.5)
