import math

import numpy as np
import pytest
import torch

from sonde.measure import update_size


def _pair(seed=0, n=500, dim=20):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)) * rng.uniform(0.5, 2.0, dim)
    return x, x + 0.3 * rng.standard_normal((n, dim))


@pytest.mark.truth("definition over all rows in memory")
def test_definition():
    x, y = _pair(dim=21)
    ratio = np.sqrt(((y - x) ** 2).mean(0)) / x.std(0)
    result = update_size(x, y)
    assert result.value == pytest.approx(np.median(ratio), rel=1e-9)
    np.testing.assert_allclose(result.ratio, ratio, rtol=1e-9)
    assert result.energy == pytest.approx(np.sqrt(((y - x) ** 2).sum() / (x**2).sum()), rel=1e-9)


def test_one_huge_unit_hides_nothing():
    x, y = _pair(1)
    want = update_size(x, y)
    x[:, 3] += 3000.0
    y[:, 3] += 3000.0
    got = update_size(x, y)
    assert got.energy < 0.01 * want.energy
    assert got.value == pytest.approx(want.value, rel=1e-6)


def test_an_idle_block_is_zero():
    x, _ = _pair(2)
    assert update_size(x, x).value == pytest.approx(0.0, abs=1e-100)


@pytest.mark.truth("simulated unrelated outputs")
def test_null():
    rng = np.random.default_rng(3)
    result = update_size(rng.standard_normal((4000, 30)), rng.standard_normal((4000, 30)))
    assert result.value == pytest.approx(result.null, rel=0.02)


@pytest.mark.truth("spread over fresh draws of the data")
def test_error():
    fresh = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((200, 1))
        fresh.append(update_size(x, x + 0.3 * rng.standard_normal((200, 1))))
    scale = np.std([r.value for r in fresh], ddof=1)
    assert np.mean([r.se for r in fresh]) / scale == pytest.approx(1.0, abs=0.35)


def test_constant_units_are_left_out():
    x, y = _pair(4)
    x[:, 0] = 1.0
    assert math.isnan(float(update_size(x, y).ratio[0]))
    assert math.isfinite(update_size(x, y).value)
    result = update_size(torch.ones(5, 3), torch.zeros(5, 3))
    assert math.isnan(result.value)
    assert result.flags == ("dead",)
