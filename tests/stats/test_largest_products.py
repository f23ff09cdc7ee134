import sys
from functools import partial

import numpy as np
import pytest
import torch

from sonde.stats import largest_products

neighbours = sys.modules["sonde.stats.neighbours"]


def _rows(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("numpy's full sort of every product")
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("n", [40, 500, 1357])
@pytest.mark.parametrize("tile", [64, 200, 1 << 14])
def test_a_full_sort(monkeypatch, k, n, tile):
    monkeypatch.setattr(neighbours, "TILE", tile)
    monkeypatch.setattr(neighbours, "WAYS", 4)
    monkeypatch.setattr(neighbours, "PRODUCTS", 7 * tile)
    x, bank = _rows(23, 6), _rows(n, 6, seed=1)
    products = x.numpy() @ bank.numpy().T
    values, index = largest_products(x, bank, k)
    near = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)  # near zero digits are lost
    near(values, -np.sort(-products, axis=1)[:, :k])
    near(np.take_along_axis(products, index.numpy(), 1), values)
    assert all(len(set(row)) == k for row in index.tolist())


def test_equal_products_are_each_found_once():
    bank = torch.ones(2000, 3)
    values, index = largest_products(torch.ones(5, 3), bank, 10)
    assert torch.equal(values, torch.full((5, 10), 3.0))
    assert all(len(set(row)) == 10 for row in index.tolist())


def test_a_row_that_is_not_finite_leaves_the_others_alone():
    x, bank = _rows(4, 3), _rows(3000, 3, seed=1)
    broken = x.clone()
    broken[2] = torch.nan
    want, got = largest_products(x, bank, 5), largest_products(broken, bank, 5)
    others = [0, 1, 3]
    assert torch.equal(got[0][others], want[0][others])
    assert torch.equal(got[1][others], want[1][others])


def test_no_rows():
    values, index = largest_products(torch.zeros(0, 3), torch.ones(4, 3), 2)
    assert values.shape == index.shape == (0, 2)
