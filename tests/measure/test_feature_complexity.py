import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from sonde.core.errors import InputError
from sonde.measure import FeatureComplexity, feature_complexity


@pytest.mark.truth("a feature of known parts")
def test_complexity_is_the_mean_share_that_is_missing():
    n, rng = 4000, np.random.default_rng(0)
    raw = rng.standard_normal((n, 3))
    q = np.linalg.qr(raw - raw.mean(0))[0]
    z = q @ np.sqrt([[0.2], [0.3], [0.5]])
    layers = [q[:, :1], q[:, :2] @ [[1.0, 2.0], [3.0, 1.0]], 5 * q + 1]
    found = feature_complexity([*layers, z], features="units", m=n)
    adjusted = [1 - (1 - r) * (n - 1) / (n - 1 - p) for r, p in ((0.2, 1), (0.5, 2), (1.0, 3))]
    np.testing.assert_allclose(found.r2[:, 0], adjusted, rtol=1e-8)
    assert found.value == pytest.approx(0.4333333333, abs=1e-3)
    assert float(found.nats[1]) == pytest.approx(0.3465735903, abs=1e-3)
    assert found.emerges.tolist() == [2]


@pytest.mark.truth("scikit-learn's least squares and principal directions")
def test_shares_are_those_of_the_peer():
    rng = np.random.default_rng(1)
    one = rng.standard_normal((300, 6))
    two = np.tanh(one @ rng.standard_normal((6, 5)))
    last = np.abs(two @ rng.standard_normal((5, 4))) * [4.0, 3.0, 2.0, 1.0] + 7
    found = feature_complexity([one, two, last], k=2)
    goal = PCA(2).fit_transform(last)
    for x, shares in zip((one, two), found.r2, strict=True):
        left = np.var(goal - LinearRegression().fit(x, goal).predict(x), axis=0)
        want = 1 - left / np.var(goal, axis=0) * 299 / (299 - x.shape[1])
        np.testing.assert_allclose(shares, want, rtol=1e-9, atol=1e-12)


@pytest.mark.truth("simulated unrelated layers")
def test_null_is_what_unrelated_layers_give():
    rng = np.random.default_rng(2)
    found = [
        feature_complexity([rng.standard_normal((80, 20)), rng.standard_normal((80, 10))])
        for _ in range(20)
    ]
    values = [float(r) for r in found]
    null = float(torch.as_tensor(found[0].null))
    assert null < 0.99
    assert np.mean(values) == pytest.approx(null, abs=4 * np.std(values) / np.sqrt(20))


def test_what_the_stream_keeps_is_simple_and_a_product_is_not():
    rng = np.random.default_rng(3)
    x = rng.choice([-1.0, 1.0], (2000, 3))
    hidden = np.hstack([x, np.maximum(x[:, :1] + x[:, 1:2], 0)])
    last = np.hstack([x[:, :1], x[:, :1] * x[:, 1:2]])
    found = feature_complexity([x, hidden, last], features="units")
    assert found.complexity.tolist() == pytest.approx([0.0, 0.5], abs=0.01)
    assert found.emerges.tolist() == [0, 1]
    assert float(torch.as_tensor(found.se)) < 0.01


def test_too_few_rows_and_constant_features_are_flagged():
    rng = np.random.default_rng(4)
    few = feature_complexity([rng.standard_normal((20, 30)), rng.standard_normal((20, 2))])
    assert np.isnan(few.value)
    assert "few_rows" in few.flags
    x = rng.standard_normal((40, 2))
    dead = feature_complexity([x, np.hstack([x, np.ones((40, 1))])], features="units")
    assert "dead" in dead.flags
    assert torch.isnan(dead.complexity).tolist() == [False, False, True]


def test_one_layer_is_refused():
    with pytest.raises(InputError, match="expected rows of at least 2 sites, got 1"):
        feature_complexity([np.ones((5, 2))])
    with pytest.raises(InputError, match="FeatureComplexity: expected k of at least 1, got 0"):
        FeatureComplexity(k=0)
