import math

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes as peer

import independent_pairs
from fixture_rows import X, Y
from sonde.measure import procrustes


@pytest.mark.truth("rows turned by scipy.linalg.orthogonal_procrustes")
def test_known_values():
    result = procrustes(X, Y)
    unit, raw = independent_pairs.procrustes(X, Y)
    assert result.value == pytest.approx(unit, rel=1e-9)
    assert result.angle == pytest.approx(np.arccos(1 - unit / 2), rel=1e-9)
    assert result.raw == pytest.approx(raw, rel=1e-9)


@pytest.mark.truth("scipy.spatial.procrustes, which also scales the turned cloud")
def test_scipy_has_the_same_nuclear_norm():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4))
    y = x @ rng.standard_normal((4, 4)) + rng.standard_normal((50, 4))
    disparity = peer(x, y)[2]
    cosine = 1 - procrustes(x, y).value / 2
    assert 1 - cosine**2 == pytest.approx(disparity, rel=1e-9)


def test_a_turned_cloud_is_the_same_and_narrower_sites_have_units_of_zeros():
    turn = torch.linalg.qr(torch.sin(torch.arange(25.0, dtype=torch.float64)).reshape(5, 5))[0]
    assert float(procrustes(X, 7 * X @ turn + 3)) == pytest.approx(0.0, abs=1e-12)
    wide = torch.cat([Y, torch.zeros(60, 1)], dim=1)
    assert procrustes(X, wide).value == pytest.approx(float(procrustes(X, Y)), rel=1e-12)


@pytest.mark.truth("simulated unrelated rows")
def test_null():
    rng = np.random.default_rng(0)
    scale = np.array([4.0, 2, 1, 1, 1])
    found = [
        procrustes(rng.standard_normal((200, 5)) * scale, rng.standard_normal((200, 3)))
        for _ in range(30)
    ]
    mean = np.mean([float(r) for r in found])
    assert mean == pytest.approx(np.mean([float(torch.as_tensor(r.null)) for r in found]), abs=0.01)


def test_constant_rows_have_no_value():
    result = procrustes(torch.ones(60, 2), Y)
    assert math.isnan(float(result))
    assert "dead" in result.flags
