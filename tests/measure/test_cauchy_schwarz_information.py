import math

import numpy as np
import pytest
import torch

from fixture_rows import X, Y
from narrow import present
from sonde.core.errors import InputError
from sonde.measure import CauchySchwarzInformation
from sonde.measure import cauchy_schwarz_information as information


def _pair(seed, n, rho):
    a, b = np.random.default_rng(seed).standard_normal((2, n, 1))
    return a, rho * a + math.sqrt(1 - rho**2) * b


def _brute(x, y, wide, wide2):
    """The three potentials as sums over pairs and triples of rows, one at a time."""
    n = len(x)

    def near(z, width, i, j):
        return math.exp(-sum((a - b) ** 2 for a, b in zip(z[i], z[j], strict=True)) / 2 / width**2)

    k = [[near(x, wide, i, j) for j in range(n)] for i in range(n)]
    other = [[near(y, wide2, i, j) for j in range(n)] for i in range(n)]
    joint = sum(k[i][j] * other[i][j] for i in range(n) for j in range(n)) / n**2
    apart = sum(map(sum, k)) * sum(map(sum, other)) / n**4
    cross = sum(k[i][j] * other[i][p] for i in range(n) for j in range(n) for p in range(n)) / n**3
    return math.log(joint) + math.log(apart) - 2 * math.log(cross)


@pytest.mark.truth("sums over pairs and triples of rows, written out")
def test_brute_force():
    x, y = X[:24], Y[:24]
    found = information(x, y, sigma=(1.0, 0.7))
    assert found.value == pytest.approx(_brute(x.tolist(), y.tolist(), 1.0, 0.7), rel=1e-9)
    own = [_brute(z.tolist(), z.tolist(), w, w) for z, w in ((x, 1.0), (y, 0.7))]
    assert found.share == pytest.approx(found.value / math.sqrt(own[0] * own[1]), rel=1e-9)


@pytest.mark.truth("integrals of Gaussian kernels over a bivariate normal, in closed form")
@pytest.mark.parametrize(("rho", "want"), [(0.75, 0.0793025151), (0.9, 0.1288328718)])
def test_population_value(rho, want):
    assert _closed(rho) == pytest.approx(want, rel=1e-8)
    found = information(*_pair(0, 500, rho), sigma=1.0)
    error = float(present(found.se))
    assert found.value == pytest.approx(want, abs=3 * error)
    assert error < 0.02
    assert found.share == pytest.approx(_closed(rho) / _closed(1.0), abs=0.05)


def _closed(rho, sigma=1.0):
    s, one = np.array([[1, rho], [rho, 1]]), np.eye(2)
    joint = np.linalg.det(one + 2 * s / sigma**2) ** -0.5
    apart = 1 / (1 + 2 / sigma**2)
    cross = np.linalg.det(one + s / (sigma**2 + 1)) ** -0.5 / (1 + 1 / sigma**2)
    return math.log(joint) + math.log(apart) - 2 * math.log(cross)


@pytest.mark.truth("unrelated rows, and unrelated documents of alike rows")
@pytest.mark.parametrize("size", [1, 4])
def test_unrelated_rows_have_the_null(size):
    rng, group = np.random.default_rng(1), np.repeat(np.arange(240 // size), size)
    effects = rng.standard_normal((2, 240 // size, 3))[:, group]
    x, y = effects + 0.1 * rng.standard_normal((2, 240, 3))
    found = information(x, y, group=group)
    error = float(present(found.se))
    assert float(found) == pytest.approx(float(present(found.null)), abs=3 * error)
    alone = information(x, y)
    assert (float(alone) > 2 * float(present(alone.null))) == (size > 1)


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws")
def test_standard_error():
    found = [information(*_pair(i, 150, 0.75)) for i in range(20)]
    errors = np.mean([float(present(r.se)) for r in found])
    assert 0.7 < errors / np.std([float(r) for r in found]) < 1.5


def test_invariances_and_what_cannot_be():
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())
    known = information(X, Y).value
    assert information(3.0 * X @ turn[0] + 1e4, Y).value == pytest.approx(known, rel=1e-6)
    assert information(X, Y * torch.arange(1.0, 5.0)).value != pytest.approx(known, rel=1e-2)
    narrow = information(X, Y, sigma=1e-3)
    assert narrow.value == pytest.approx(math.log(60), rel=1e-6)
    assert "saturated" in narrow.flags
    dead = information(X, torch.ones(60, 2))
    assert math.isnan(dead.value)
    assert "dead" in dead.flags
    with pytest.raises(InputError, match="CauchySchwarzInformation: expected sigma above 0"):
        CauchySchwarzInformation(sigma=0.0)
