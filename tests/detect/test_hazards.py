import math

import pytest
import torch

from sonde.core.errors import InputError
from sonde.detect.trajectory_verifier import step_chances


def _long(*values):
    return torch.tensor(values)


@pytest.mark.truth("worked out by hand")
def test_three_steps():
    found = step_chances(torch.tensor([0.1, 0.5, 0.2]), _long(0, 0, 0), _long(0, 1, 2))
    assert found.first.tolist() == pytest.approx([0.1, 0.45, 0.09])
    assert float(found.wrong) == pytest.approx(1 - 0.36)
    assert float(found.first.sum() + 1 - found.wrong) == pytest.approx(1.0)
    assert found.alarm.tolist() == pytest.approx([0.1, 0.55, 0.64])
    assert found.step.tolist() == [1]
    assert found.answers(0.6).tolist() == [1]
    assert found.answers(0.7).tolist() == [-1]


@pytest.mark.truth("products over each trajectory alone")
def test_rows_in_any_order():
    rng = torch.Generator().manual_seed(0)
    trajectory = torch.repeat_interleave(_long(7, 3, 9, 1), _long(4, 1, 6, 3))
    position = torch.cat([torch.arange(n) for n in (4, 1, 6, 3)])
    hazard = torch.rand(14, generator=rng, dtype=torch.float64)
    order = torch.randperm(14, generator=rng)
    found = step_chances(hazard[order], trajectory[order], position[order])
    assert found.trajectory.tolist() == [1, 3, 7, 9]
    for i, which in enumerate([1, 3, 7, 9]):
        own = hazard[trajectory == which].tolist()
        none = [math.prod(1 - h for h in own[:t]) for t in range(len(own) + 1)]
        first = [h * n for h, n in zip(own, none, strict=False)]
        mine = trajectory[order] == which
        place = position[order][mine].tolist()
        assert found.first[mine].tolist() == pytest.approx([first[t] for t in place])
        assert found.alarm[mine].tolist() == pytest.approx([1 - none[t + 1] for t in place])
        assert float(found.wrong[i]) == pytest.approx(1 - none[-1])
        assert int(found.step[i]) == max(range(len(first)), key=first.__getitem__)
        assert int(order[found.row[i]]) == int(
            torch.nonzero((trajectory == which) & (position == found.step[i]))[0, 0]
        )


def test_certain_steps_and_alarms_that_never_fall():
    found = step_chances(torch.tensor([0.0, 1.0, 0.7]), _long(0, 0, 0), _long(0, 1, 2))
    assert found.first.tolist() == [0.0, 1.0, 0.0]
    assert found.alarm.tolist() == [0.0, 1.0, 1.0]
    many = step_chances(torch.rand(500), torch.zeros(500).long(), torch.arange(500))
    assert bool((many.alarm.diff() >= 0).all())


def test_a_row_that_is_not_finite_makes_its_trajectory_infinite():
    found = step_chances(torch.tensor([0.1, math.inf, 0.2]), _long(0, 0, 1), _long(0, 1, 0))
    assert found.wrong.tolist() == pytest.approx([math.inf, 0.2])
    assert found.step.tolist() == [1, 0]


def test_a_step_twice_is_refused():
    with pytest.raises(InputError, match="each step of a trajectory once, got step 4 twice"):
        step_chances(torch.rand(3), _long(0, 0, 1), _long(4, 4, 4))
