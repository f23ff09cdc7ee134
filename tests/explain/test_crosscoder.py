import pytest
import torch

from sonde.explain import Crosscoder
from sonde.stats.training import generator

HOW = {"k": 4, "batch": 256, "mixed": 1, "passes": 16, "rate": 2e-2}


@pytest.mark.essential
@pytest.mark.truth("the planted one of both sites, and the planted ones of one alone")
def test_shares_tell_features_of_both_sites_from_those_of_one():
    source = generator("cross")
    true = torch.linalg.qr(torch.randn(12, 12, generator=source))[0]
    a, b = true.clone(), torch.linalg.qr(torch.randn(12, 12, generator=source))[0]
    a[8:], b[4:8] = 0, 0  # four shared, four at the first site alone, four at the second
    z = (torch.rand(4096, 12, generator=source) < 1 / 8) * (
        1 + torch.rand(4096, 12, generator=source)
    )
    found = Crosscoder(features=12, **HOW).fit(z @ a, y=z @ b)
    assert found.value < 0.1
    share = found.shares[0]
    groups = [(share - at).abs() < 0.12 for at in (0.5, 1.0, 0.0)]
    assert all(int(g.sum()) >= 3 for g in groups), share
    assert found.widths == (12, 12)
