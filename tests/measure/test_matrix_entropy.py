import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import sonde
from fixture_rows import X
from narrow import present
from sonde.measure import MatrixEntropy, matrix_entropy


def _brute(x, centered=True):
    z = x - x.mean(0) if centered else x
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    shares = np.linalg.svd(u, compute_uv=False) ** 2 / len(u)
    return scipy.stats.entropy(shares) / math.log(x.shape[1])


@pytest.mark.truth("equal directions in closed form, numpy's singular values of unit rows")
def test_known_values():
    assert matrix_entropy(X).value == pytest.approx(_brute(X.numpy()), rel=1e-9)
    copies = torch.eye(8)[:4].repeat(10, 1)
    plain, centered = (matrix_entropy(copies, centered=c).value for c in (False, True))
    assert plain == pytest.approx(math.log(4) / math.log(8), rel=1e-9)
    assert centered == pytest.approx(math.log(3) / math.log(8), rel=1e-9)


@pytest.mark.truth("numpy's singular values of unit rows, scipy's entropy")
@pytest.mark.parametrize("centered", [True, False])
def test_formula_and_stream(centered):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 7)) * np.linspace(0.2, 3.0, 7) + 2.0
    found = matrix_entropy(x, centered=centered)
    assert found.value == pytest.approx(_brute(x, centered), rel=1e-9)
    stream = sonde.Stream.of({"a": torch.as_tensor(x)})
    again = sonde.fit(MatrixEntropy(centered), stream, progress=False).result("matrix_entropy")
    assert float(again) == pytest.approx(float(found), rel=1e-9)
    assert float(present(again.se)) == pytest.approx(float(present(found.se)), rel=1e-6)


@pytest.mark.truth("the spread over fresh draws")
def test_standard_error():
    rng = np.random.default_rng(1)
    found = [matrix_entropy(rng.standard_normal((300, 5)) * np.arange(1, 6)) for _ in range(16)]
    spread = np.std([float(r) for r in found], ddof=1)
    assert np.mean([float(present(r.se)) for r in found]) / spread == pytest.approx(1.0, abs=0.35)


@pytest.mark.truth("simulated white rows")
def test_null_is_that_of_white_rows():
    rng = np.random.default_rng(2)
    for n, dim in ((200, 40), (30, 60)):
        found = [matrix_entropy(rng.standard_normal((n, dim))) for _ in range(4)]
        mean = np.mean([float(r) for r in found])
        assert mean == pytest.approx(float(present(found[0].null)), abs=0.005)
        assert "se_first_order" in found[0].flags
        assert ("few_rows" in found[0].flags) == (n <= dim)


def test_invariances_and_rows_without_direction():
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())
    known = matrix_entropy(X).value
    assert matrix_entropy(-2.0 * X @ turn[0] + 9.0).value == pytest.approx(known, rel=1e-9)
    assert matrix_entropy(X * torch.arange(1.0, 6.0)).value != pytest.approx(known, rel=1e-3)
    assert matrix_entropy(X + 9.0, centered=False).value < 0.5
    some: Any = matrix_entropy(torch.cat([torch.eye(4), torch.zeros(4, 4)]), centered=False)
    assert (some.n_zero, some.value) == (4, pytest.approx(1.0))
    for rows in (torch.ones(9, 3), torch.arange(9.0)[:, None]):
        dead = matrix_entropy(rows)
        assert math.isnan(dead.value)
        assert "dead" in dead.flags
    # equal rows whose mean is not exactly one of them are told by the precision of their spread
    flags = set(matrix_entropy(torch.full((9, 3), 0.1)).flags)
    assert flags & {"dead", "lost_precision"}
    assert "lost_precision" in matrix_entropy((X + 1e7).float()).flags
