"""Second moments of inputs, and what they cannot solve."""

import pytest
import torch

from sonde.core import InputError, ShapeError, StateError
from sonde.edit import SecondMoment


@pytest.mark.truth("the mean of outer products over all rows in memory")
def test_it_is_not_centred():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double() + 3
    want = x.T @ x / 50
    found = SecondMoment().fit(x)
    torch.testing.assert_close(found.matrix, want)
    assert found.value == pytest.approx(float(want.trace()))
    keys = torch.eye(4)[:, :2].double()
    torch.testing.assert_close(found.solve(keys), want.inverse()[:, :2])
    ridged = SecondMoment(ridge=0.5).fit(x)
    torch.testing.assert_close(ridged.matrix, want + 0.5 * want.trace() / 4 * torch.eye(4))
    assert ridged.conventions["ridge"] == 0.5


def test_a_singular_one_is_refused_until_a_ridge_is_asked_for():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(StateError, match=r"3 inputs of dim=4 is singular.*ridge"):
        SecondMoment().fit(x).solve(torch.ones(4, 1))
    dead = torch.cat([x, x + 1, x * 2], 0) * torch.tensor([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(StateError, match="singular"):
        SecondMoment().fit(dead).solve(torch.ones(4, 1))
    for first in (0.0, 1.0):  # with the rest of them dead, or alive
        with pytest.raises(StateError, match="singular"):
            SecondMoment().fit(dead * torch.tensor([0.0, first, first, first])).solve(
                torch.ones(4, 1)
            )
    assert bool(torch.isfinite(SecondMoment(ridge=1e-3).fit(dead).solve(torch.ones(4, 1))).all())
    with pytest.raises(ShapeError, match="dim=4, got dim=5"):
        SecondMoment(ridge=1.0).fit(x).solve(torch.ones(5, 1))
    with pytest.raises(InputError, match="ridge of at least 0"):
        SecondMoment(ridge=-1.0)
