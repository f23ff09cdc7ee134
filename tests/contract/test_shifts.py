"""Every shift against every law of comparisons."""

import pytest
import torch

from contract.statistics import exported_instruments
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.shift import Shift
from sonde.testing import KINDS
from sonde.testing import shift_laws as laws

SHIFTS = [i for i in exported_instruments() if isinstance(i, Shift)]


def test_there_are_shifts():
    assert len(SHIFTS) > 0


@pytest.mark.parametrize("shift", SHIFTS, ids=[repr(s).replace(" ", "") for s in SHIFTS])
@pytest.mark.parametrize("law", KINDS[Shift], ids=lambda law: law.name)
def test_law(law, shift):
    law.hold(shift)


@pytest.mark.parametrize("shift", SHIFTS, ids=[repr(s).replace(" ", "") for s in SHIFTS])
def test_sides_of_another_width_are_refused(shift):
    with pytest.raises(ShapeError, match=r"expected sides of equal width, got dim=4 and dim=3"):
        shift.between(laws.normal_rows(20, 0), laws.normal_rows(20, 1, 3))


@pytest.mark.parametrize("shift", SHIFTS, ids=[repr(s).replace(" ", "") for s in SHIFTS])
def test_a_row_that_is_not_finite_is_left_out(shift):
    x, y = laws.normal_rows(40, 0), laws.normal_rows(40, 1)
    y[0, 0] = torch.nan
    assert shift.between(x, y).n == 79


def test_sides_of_other_parameters_are_refused():
    x = laws.normal_rows(30, 0)
    for shift in SHIFTS:
        others = [s for s in SHIFTS if type(s) is type(shift) and s != shift]
        for other in others:
            with pytest.raises(StateError, match=r"first\.shift\.fit"):
                shift.fit(x).compare(other.fit(x))


def test_rows_of_one_group_are_refused():
    x, y = laws.normal_rows(30, 0), laws.normal_rows(30, 1)
    for shift in SHIFTS:
        first = shift.fit(x)
        with pytest.raises(InputError, match="independent rows on each side, got 1"):
            first.compare(first.shift.fit(y, group=["one"] * 30))
