"""Control tasks on states that are nothing but their type, and on states with a property."""

import pytest
import torch

from sonde.core import InputError
from sonde.explain import ControlTask

DRAW = torch.Generator().manual_seed(0)
TYPE = torch.randint(40, (1200,), generator=DRAW)


@pytest.mark.truth("states that are one-hot types: any labelling of types is read perfectly")
def test_a_probe_that_learns_types_by_heart_has_no_selectivity():
    x = torch.nn.functional.one_hot(TYPE, 40).double()
    found = ControlTask("position").fit(x, label=TYPE % 2, position=TYPE, group=torch.arange(1200))
    assert (found.accuracy, found.control, found.value) == (1.0, 1.0, 0.0)


@pytest.mark.truth("planted property of few dimensions: random classes of types stay at chance")
def test_a_property_of_the_states_is_selective():
    label = TYPE % 2
    noise = torch.randn(1200, 3, generator=DRAW, dtype=torch.float64)
    x = torch.cat([label[:, None] + 0.1 * noise[:, :1], noise[:, 1:]], 1)
    found = ControlTask("position").fit(x, label=label, position=TYPE)
    assert found.accuracy == 1.0
    assert found.control < 0.75
    assert found.value == pytest.approx(found.accuracy - found.control)
    assert found.value > 5 * found.se


def test_two_types_are_enough():
    kind, x = TYPE[:200] % 2, torch.randn(200, 3, generator=DRAW)
    found = ControlTask("position", seed=1).fit(x, label=torch.arange(200) % 2, position=kind)
    assert found.n == 200


def test_one_type_is_refused():
    with pytest.raises(InputError, match="several types in the column 'position', got 1"):
        ControlTask("position").fit(
            torch.randn(20, 2, generator=DRAW),
            label=torch.arange(20) % 2,
            position=torch.zeros(20, dtype=torch.int64),
        )
