import math

import pytest
import torch

from sonde.stats.log_histogram import _exact_bins, log_bins


@pytest.mark.truth(
    "comparison of mantissas, on random bit patterns and on both sides of every edge"
)
def test_table_equals_comparison():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (500_000,), generator=generator)
    x = bits.int().view(torch.float32)
    edges = (2.0 ** (torch.arange(-180, 120, dtype=torch.float64) / 4)).float()
    near = torch.cat([edges, edges.nextafter(edges * 2), edges.nextafter(edges * 0)])
    x = torch.cat([x[torch.isfinite(x)], near, -near, torch.tensor([0.0, -0.0, 1e-45, -1e-45])])
    assert torch.equal(log_bins(x).long(), _exact_bins(x).long())


def test_infinity_falls_into_the_outer_bins():
    assert log_bins(torch.tensor([math.inf, -math.inf])).tolist() == [520, 0]
