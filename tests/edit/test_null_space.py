"""Updates in the directions that protected inputs do not reach."""

import pytest
import torch

from sonde.core import InputError, ShapeError, StateError
from sonde.edit import NullSpace


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("outputs of the protected rows before and after")
def test_any_update_leaves_protected_outputs_alone():
    keys = normal(100, 3) @ normal(3, 8, seed=1) + normal(1, 8, seed=2)
    found = NullSpace().fit(keys)
    assert found.value == 4.0
    update = found.restrict(normal(5, 8, seed=3))
    assert float((keys @ update.T).abs().max()) < 1e-10
    assert float(update.norm()) > 1.0
    torch.testing.assert_close(found.restrict(update), update)


@pytest.mark.truth("mean squared change of outputs, over that of an unrestricted update")
def test_what_leaks_is_said():
    keys = 0.01 * normal(4000, 8) * torch.tensor([1.0] * 6 + [0.03] * 2)
    found = NullSpace().fit(keys)
    assert found.value == 2.0
    assert found.flags == ()
    share = keys[:, 6:].square().sum() / keys.square().sum()
    assert found.leak == pytest.approx(float(share), rel=0.02)


def test_no_room_is_said():
    found = NullSpace().fit(normal(100, 4))
    assert found.value == 0.0
    assert found.range == (0.0, 4.0)
    with pytest.raises(StateError, match="span all 4 directions"):
        found.restrict(normal(2, 4))
    with pytest.raises(ShapeError, match="dim=4, got dim=5"):
        found.restrict(normal(2, 5))
    with pytest.raises(InputError, match="tolerance above 0"):
        NullSpace(tolerance=0.0)


def test_rows_of_zero_reach_nothing():
    found, update = NullSpace().fit(torch.zeros(9, 4)), normal(2, 4)
    assert (found.value, found.leak, found.flags) == (4.0, 0.0, ("dead",))
    torch.testing.assert_close(found.restrict(update), update)
