import numpy as np
import pytest

import independent_pairs
from fixture_rows import X, Y
from sonde.measure import cca, pwcca


@pytest.mark.truth("weighted angles between the spans of the units in numpy")
def test_known_values():
    for x, y in ((X, Y), (Y, X)):
        assert pwcca(x, y).value == pytest.approx(independent_pairs.pwcca(x, y), rel=1e-9)


@pytest.mark.truth("the definition on rows with numpy")
def test_is_the_definition_on_rows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)) @ rng.standard_normal((4, 4)) * [10, 1, 1, 1]
    y = x[:, :3] + rng.standard_normal((200, 3))
    x0, y0 = x - x.mean(0), y - y.mean(0)
    qx, qy = np.linalg.qr(x0)[0], np.linalg.qr(y0)[0]
    u, rho, _ = np.linalg.svd(qx.T @ qy)
    weight = np.abs((qx @ u[:, :3]).T @ x0).sum(1)
    want = (weight * rho).sum() / weight.sum()
    assert pwcca(x, y).value == pytest.approx(want, rel=1e-10)


def test_directions_that_the_first_site_hardly_uses_count_little():
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal((500, 2)), rng.standard_normal((500, 2))
    x = np.hstack([10 * shared, 0.1 * own])
    assert float(pwcca(x, shared @ np.array([[1.0, 2], [0, 1]]))) > 0.99
    y = np.hstack([shared, rng.standard_normal((500, 2))])
    assert float(pwcca(x, y)) > float(cca(x, y)) + 0.3
