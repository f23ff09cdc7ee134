import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import independent_information
from sonde.core.errors import InputError
from sonde.measure import InfoMEC, info_mec
from sonde.measure.info_mec import _predicted, balance, modular_compact


@pytest.mark.truth("largest over sum, one line of the table at a time")
def test_known_values():
    table = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.1, 0.6]], dtype=torch.float64)
    modular, compact = modular_compact(table)
    want = independent_information.modular_compact(table)
    assert [float(modular), float(compact)] == pytest.approx(want, rel=1e-9)
    assert [float(v) for v in modular_compact(torch.eye(3).double())] == pytest.approx([1.0, 1.0])
    even = modular_compact(torch.ones(2, 3, dtype=torch.float64))
    assert [float(v) for v in even] == pytest.approx([0.0, 0.0], abs=1e-12)


def planted(n=600, seed=0, noise=0.4):
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(0, 3, n), rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])], 1)
    latents = np.hstack([factors, np.zeros((n, 1))]) + noise * rng.standard_normal((n, 3))
    return latents, factors.astype(float)


@pytest.mark.truth("scikit-learn's logistic regression with balanced classes")
def test_the_prediction_is_the_peers():
    latents, factors = planted(400)
    x, label = torch.from_numpy(latents), torch.from_numpy(factors[:, 1]).long()
    found = _predicted(x[:200], label[:200], x[200:], 1e-3)
    scale = latents[:200].std(0)
    peer = LogisticRegression(
        C=1 / (200 * 1e-3), class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(latents[:200] / scale, label[:200])
    np.testing.assert_allclose(found, peer.predict_log_proba(latents[200:] / scale), atol=1e-4)
    assert balance(torch.tensor([0, 0, 0, 2])).tolist() == pytest.approx([2 / 3] * 3 + [2.0])


@pytest.mark.essential
@pytest.mark.truth("planted latents: one for each factor, turned, and unrelated")
def test_planted_latents():
    latents, factors = planted()
    latents[:, 2] *= 0.05
    own = torch.as_tensor(info_mec(latents, factors).value)
    assert own.tolist() == pytest.approx([0.9, 0.9, 0.7], abs=0.12)
    turn = np.linalg.qr(np.ones((3, 3)) + np.eye(3))[0]
    turned = torch.as_tensor(info_mec(latents @ turn, factors).value)
    assert float(turned[0]) < float(own[0]) - 0.2
    assert float(turned[2]) == pytest.approx(float(own[2]), abs=1e-3)
    draw = np.random.default_rng(40)
    free = [info_mec(draw.standard_normal((400, 8)), planted(400, s)[1]) for s in range(4)]
    found = torch.stack([torch.as_tensor(r.value) for r in free]).mean(0)
    null = torch.stack([torch.as_tensor(r.null) for r in free]).mean(0)
    np.testing.assert_allclose(found, null, atol=0.04)
    assert float(found[2]) < 0.0


@pytest.mark.slow
def test_an_idle_latent_is_left_out_and_constant_factors_are_flagged():
    latents, factors = planted()
    more = np.hstack([latents, 0.01 * latents[:, :1]])
    result = info_mec(more, factors)
    assert result.active.tolist() == [True, True, True, False]
    np.testing.assert_allclose(result.value, info_mec(latents, factors).value, rtol=1e-9)
    dead = info_mec(latents, np.ones((600, 2)))
    assert "dead" in dead.flags
    assert all(math.isnan(v) for v in torch.as_tensor(dead.value).tolist())


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="InfoMEC: expected penalty above 0"):
        InfoMEC(penalty=0.0)
    with pytest.raises(InputError, match="InfoMEC: expected at least two factors, got 1"):
        info_mec(torch.rand(50, 3), torch.zeros(50, 1))
