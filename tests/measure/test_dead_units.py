import numpy as np
import pytest
import torch

from sonde.measure import dead_units


@pytest.mark.truth("planted dead and constant units")
def test_finds_what_was_planted():
    x = np.random.default_rng(0).standard_normal((500, 10))
    x[:, 3], x[:, 5] = 0.0, 7.0
    x[:, 6] = 0.0
    x[17, 6] = 1e-30
    result = dead_units(x)
    assert result.value == pytest.approx(0.2)
    assert torch.nonzero(result.zero).flatten().tolist() == [3]
    assert torch.nonzero(result.constant).flatten().tolist() == [3, 5]


@pytest.mark.truth("binomial: a unit active on that share of rows stays silent with probability")
def test_rate_bound():
    bound = dead_units(torch.randn(1000, 16, generator=torch.Generator().manual_seed(1))).rate_bound
    assert 16 * (1 - bound) ** 1000 == pytest.approx(0.01)


def test_all_dead_is_flagged():
    assert dead_units(torch.ones(4, 3)).flags == ("dead",)
