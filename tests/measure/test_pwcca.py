import numpy as np
import pytest
import torch

import independent_pairs
from fixture_rows import X, Y
from sonde.measure import cca, pwcca
from sonde.measure._canonical import _turning


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


@pytest.mark.truth("torch's derivative of singular vectors")
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_singular_vectors_turn_as_they_do_where_rows_tell_them_apart(shape):
    random = torch.Generator().manual_seed(0)
    middle = torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()
    weight = torch.randn(shape[0], min(shape), generator=random, dtype=torch.float64)
    exact = torch.linalg.svd(middle, full_matrices=False).U
    slopes = [
        torch.autograd.grad((u.abs() * weight).sum(), middle)[0]
        for u in (_turning(middle, 1e-9), exact)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.truth("the spread over fresh draws")
def test_the_error_counts_the_weights():
    plan, found = np.random.default_rng(1), []
    scale, turn = np.array([6.0, 2, 1, 0.5, 0.2]), plan.standard_normal((5, 4)) / 3
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((200, 5)) * scale
        found.append(pwcca(x, x @ turn + rng.standard_normal((200, 4))))
    errors = [float(torch.as_tensor(r.se)) for r in found]
    assert 0.8 < np.mean(errors) / np.std([float(r) for r in found]) < 1.5
    assert max(errors) < 4 * np.median(errors)
