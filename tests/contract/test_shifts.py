"""Every shift against every law of comparisons."""

import math

import pytest
import torch

from contract import shift_laws as laws
from contract.statistics import exported_instruments
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.shift import Comparison, Shift
from sonde.stats import Moments

SHIFTS = [i for i in exported_instruments() if isinstance(i, Shift)]
LAWS = [
    laws.law_itself,
    laws.law_far,
    laws.law_order,
    laws.law_merged,
    laws.law_again,
    laws.law_groups,
    laws.law_degenerate,
]


def test_there_are_shifts():
    assert len(SHIFTS) > 0


@pytest.mark.slow
@pytest.mark.parametrize("shift", SHIFTS, ids=[repr(s).replace(" ", "") for s in SHIFTS])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, shift):
    law(shift)


@pytest.mark.parametrize("shift", SHIFTS, ids=[repr(s).replace(" ", "") for s in SHIFTS])
def test_sides_of_another_width_are_refused(shift):
    with pytest.raises(ShapeError, match=r"expected sides of one width, got dim=4 and dim=3"):
        shift.between(laws.normal_rows(20, 0), laws.normal_rows(20, 1, 3))


@pytest.mark.parametrize("shift", SHIFTS, ids=[repr(s).replace(" ", "") for s in SHIFTS])
def test_a_row_that_is_not_finite_is_left_out(shift):
    x, y = laws.normal_rows(40, 0), laws.normal_rows(40, 1)
    y[0, 0] = torch.nan
    assert shift.between(x, y).n == 79


class Constant(Shift):
    """Says the same whatever it is given: what the laws must catch."""

    def __init__(self, p=0.0, value=1.0):
        self.p, self.figure = p, value

    def reads(self):
        return {"moments": Moments()}

    def compare(self, first, second):
        return Comparison(value=self.figure, p=self.p, sides=(first.n, second.n), n=first.n)


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        (laws.law_itself, {"p": 0.0}),
        (laws.law_far, {"p": 1.0}),
        (laws.law_far, {"p": 0.0}),
        (laws.law_degenerate, {"p": math.nan}),
        (laws.law_degenerate, {"value": math.nan}),
        (laws.law_groups, {"p": 0.5}),
    ],
)
def test_the_laws_catch_a_shift_that_breaks_them(law, broken, monkeypatch):
    monkeypatch.setattr("sonde.core.shift.digest", lambda _: "")
    with pytest.raises(AssertionError):
        law(Constant(**broken))


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
