import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

import sonde
from fixture_rows import X, Y
from narrow import present
from sonde.core.errors import InputError
from sonde.engine.running import Running
from sonde.measure import KernelCKA, kernel_cka


def _pair(n=300, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4))
    return x, np.sin(2 * x[:, :3]) + 0.3 * rng.standard_normal((n, 3))


def _hsic(first, second):
    """The mean over distinct rows, from matrices with zero diagonals."""
    n = len(first)
    middle = first.sum() * second.sum() / ((n - 1) * (n - 2))
    rows = 2 * first.sum(0) @ second.sum(0) / (n - 2)
    return ((first * second).sum() + middle - rows) / (n * (n - 3))


def _dense(x, y):
    kernels = []
    for z in (x, y):
        gaps = pdist(z)
        kernels.append(np.exp(-(squareform(gaps) ** 2) / np.median(gaps) ** 2) - np.eye(len(z)))
    first, second = kernels
    return _hsic(first, second) / math.sqrt(_hsic(first, first) * _hsic(second, second))


@pytest.mark.essential
@pytest.mark.truth("dense kernel matrices with zero diagonals, scipy distances")
def test_random_features_come_as_near_to_the_dense_form_as_their_number_says():
    x, y = _pair(120)
    want = _dense(x, y)
    off = {}
    for m in (16, 144):
        found: list[Any] = [kernel_cka(x, y, m=m, seed=seed) for seed in range(16)]
        gaps = np.array([float(r) for r in found]) - want
        off[m] = np.sqrt(np.mean(gaps**2))
        claimed = np.sqrt(np.mean([r.features_se**2 for r in found]))
        assert claimed / off[m] == pytest.approx(1.0, abs=0.4)
        assert abs(gaps.mean()) < 4 * off[m] / math.sqrt(16)
    assert off[144] < 0.03
    assert off[16] / off[144] == pytest.approx(3.0, rel=0.4)  # 1 / sqrt(m)


@pytest.mark.truth("integrals of Gaussian kernels over a bivariate normal, in closed form")
def test_population_value():
    rho, sigma = 0.75, 1.0
    a, b = np.random.default_rng(0).standard_normal((2, 3000, 1))
    found: Any = kernel_cka(a, rho * a + math.sqrt(1 - rho**2) * b, sigma=sigma, m=128)
    known = _criterion(rho, sigma) / _criterion(1.0, sigma)
    assert known == pytest.approx(0.4044537094, rel=1e-9)
    error = math.hypot(float(present(found.se)), found.features_se)
    assert found.value == pytest.approx(known, abs=3 * error)
    assert error < 0.04
    assert found.flags == ()


def _criterion(rho, sigma):
    s, one = np.array([[1, rho], [rho, 1]]), np.eye(2)
    joint = np.linalg.det(one + 2 * s / sigma**2) ** -0.5
    single = 1 / (1 + 2 / sigma**2)
    cross = np.linalg.det(one + s / (sigma**2 + 1)) ** -0.5 / (1 + 1 / sigma**2)
    return joint + single - 2 * cross


def test_a_site_with_itself_is_one_whatever_its_scale_and_place():
    assert kernel_cka(X, 3.0 * X + 7.0, m=8).value == pytest.approx(1.0, rel=1e-9)
    x, y = _pair(100)
    assert kernel_cka(x, y, m=32).value == pytest.approx(kernel_cka(y, x, m=32).value, rel=1e-9)


def test_sees_what_the_linear_form_misses():
    angle = np.random.default_rng(1).uniform(0, 2 * np.pi, 400)
    once, twice = (np.stack([np.cos(k * angle), np.sin(k * angle)], 1) for k in (1, 2))
    found = kernel_cka(once, twice, scale=0.3, m=64)
    assert float(found) > 10 * float(present(found.se)) > 0
    assert kernel_cka(once, twice, scale=4.0, m=64).value < 0.02


@pytest.mark.truth("one pass over all rows")
def test_shards_with_one_width_merge():
    x, y = map(torch.as_tensor, _pair(120))
    whole, left, right = (Running(KernelCKA(sigma=(2.0, 1.0), m=8)) for _ in range(3))
    whole.update(x, y=y)
    left.update(x[:50], y=y[:50])
    right.update(x[50:], y=y[50:])
    left.merge(right)
    assert float(left.result()) == pytest.approx(float(whole.result()), rel=1e-9)


@pytest.mark.truth("the same arrays, fitted in memory")
def test_a_stream_gives_the_error_too():
    x, y = _pair(80)
    stream = sonde.Stream.of({"a": x, "b": y})
    found = sonde.fit(KernelCKA(m=8), stream, progress=False).result("kernel_cka")
    want = kernel_cka(x, y, m=8)
    assert float(found) == pytest.approx(float(want), rel=1e-9)
    assert float(present(found.se)) == pytest.approx(float(present(want.se)), rel=1e-6)


@pytest.mark.truth("rows of one document at unrelated sites")
def test_groups():
    x, y = _pair(60)
    alone = kernel_cka(x, y, group=range(60), m=16)
    assert alone.value == pytest.approx(kernel_cka(x, y, m=16).value, rel=1e-9)
    rng, group = np.random.default_rng(0), np.repeat(np.arange(64), 8)
    a, b = rng.standard_normal((2, 64, 3))[:, group] + 0.3 * rng.standard_normal((2, 512, 3))
    found = kernel_cka(a, b, group=group, m=64)
    assert found.n == 64
    assert abs(float(found)) < 3 * math.sqrt(2) / 64
    assert "se_first_order" in found.flags
    assert found.null == 0.0
    by_row = kernel_cka(a, b, m=64)
    assert float(by_row) > 4 * float(present(by_row.se))


def test_constant_rows_and_wrong_widths():
    found = kernel_cka(X, torch.ones(60, 3), m=8)
    assert math.isnan(found.value)
    assert "dead" in found.flags
    # most rows are equal, so the median distance is 0
    rare = torch.where(torch.arange(60)[:, None] % 6 > 0, 0.0, Y)
    assert math.isfinite(float(kernel_cka(X, rare, m=8)))
    with pytest.raises(InputError, match="KernelCKA: expected sigma"):
        kernel_cka(X, Y, sigma=(1.0, 0.0))
    with pytest.raises(InputError, match="KernelCKA: expected m of at least 2"):
        KernelCKA(m=1)
