import pytest
import torch

from sonde.core.errors import InputError
from sonde.stats import Scalars


@pytest.mark.truth("torch reductions over all rows")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_units(dtype):
    x = torch.relu(torch.randn(500, 6, generator=torch.Generator().manual_seed(0))).to(dtype)
    x[:, 5] += 1
    statistic = Scalars()
    state = statistic.merge(statistic.observe(x[:3]), statistic.observe(x[3:]))
    wide = x.double()
    assert state.n == 500
    torch.testing.assert_close(state.mean, wide.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state.variance, wide.var(0, correction=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.mean_square, wide.square().mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(state.low, wide.amin(0))
    assert torch.equal(state.high, wide.amax(0))
    assert torch.equal(state.zeros, (x == 0).sum(0))
    assert int(state.zeros[5]) == 0


def test_integer_column_is_one_unit():
    state = Scalars("length").observe(torch.tensor([3, 0, 9]))
    assert (float(state.mean), int(state.zeros), float(state.high)) == (4.0, 1, 9.0)


def test_unknown_column():
    with pytest.raises(InputError, match="column of rows, got 'colour'"):
        Scalars("colour")
