import math

import pytest
import torch

from sonde.detect.nac import influence_edges
from sonde.stats.table_bins import TableBins, fast_bins


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


def test_edges_too_uneven_for_a_table_fall_back():
    edges = torch.tensor([0.0, 1e-9, 1.0])
    assert TableBins.of(edges) is None
    assert fast_bins(torch.tensor([[5e-10, 0.5]]), edges).tolist() == [[1, 2]]


def test_nan_does_not_break_the_rest():
    x = torch.tensor([[math.nan, 0.5]])
    assert fast_bins(x, torch.tensor([0.0, 1.0])).tolist()[0][1] == 1
