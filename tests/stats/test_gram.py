import numpy as np
import pytest
import torch

from sonde.stats.moments import gram


@pytest.mark.truth("numpy in float64")
@pytest.mark.parametrize(("n", "dim"), [(7, 5), (50, 128), (300, 129), (2100, 300), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_keep_float64(n, dim, dtype):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, rows = gram(x), x.double().numpy()
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-12, atol=1e-12)


@pytest.mark.truth("the number of directions")
def test_many_rows_reach_no_further_than_their_directions():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(900, 3, generator=g) @ torch.randn(3, 300, generator=g)
    values = torch.linalg.eigvalsh(gram(x - x.mean(0)))
    assert float(values[:-3].abs().max() / values[-1]) < 1e-12
