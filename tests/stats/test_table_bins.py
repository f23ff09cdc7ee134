import math

import numpy as np
import pytest
import torch

from sonde.stats.influence_bins import TableBins, fast_bins, influence_edges


@pytest.mark.truth("torch.bucketize")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e-4, 1.0, 3.7, 1e5])
@pytest.mark.parametrize("n_bins", [4, 50, 200])
def test_equals_binary_search(dtype, alpha, n_bins):
    edges = influence_edges(alpha, n_bins)
    x = torch.randn(300, 7, generator=torch.Generator().manual_seed(0)).to(dtype) / alpha
    near = torch.cat([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1)]).to(dtype)
    x = torch.cat([x.flatten(), near, torch.tensor([math.inf, -math.inf, 0.0, -0.0])])[:, None]
    want = torch.bucketize(x, edges.to(dtype), right=True)
    assert torch.equal(fast_bins(x.to(dtype), edges).long(), want)


@pytest.mark.truth("numpy.searchsorted in float64")
@pytest.mark.parametrize("alpha", [1e-4, 1.0, 3.7, 1e5, 1e300])
@pytest.mark.parametrize("n_bins", [4, 50, 200])
def test_exact_numbers_are_binned_where_rounded_ones_would_cross_an_edge(alpha, n_bins):
    edges = influence_edges(alpha, n_bins)
    exact = torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    beside = torch.cat([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1)])
    exact = torch.cat([exact / alpha, beside, edges * (1 + 1e-9), edges * (1 - 1e-9)])[:, None]
    want = np.searchsorted(edges.numpy(), exact.numpy(), side="right")
    assert fast_bins(exact.float(), edges, exact).tolist() == want.tolist()
    if 0.1 < alpha < 10:
        assert fast_bins(exact.float(), edges).tolist() != want.tolist()


def test_edges_too_uneven_for_a_table_fall_back():
    edges = torch.tensor([0.0, 1e-9, 1.0])
    assert TableBins.of(edges, torch.float32) is None
    assert fast_bins(torch.tensor([[5e-10, 0.5]]), edges).tolist() == [[1, 2]]


def test_nan_does_not_break_the_rest():
    x = torch.tensor([[math.nan, 0.5]])
    assert fast_bins(x, torch.tensor([0.0, 1.0])).tolist()[0][1] == 1
