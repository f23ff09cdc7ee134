"""Ranges of parameters: which numbers they hold, and what is said of the others."""

from types import SimpleNamespace

import pytest

from sonde import InputError
from sonde.core.ranges import check_ranges

HELD = {
    "> 0": (1e-9, float("inf")),
    ">= 2": (2, 2.5),
    "(0, 1]": (0.1, 1.0),
    "[0, 1)": (0, 0.99),
    "[-1, inf)": (-1, 1e9),
}
OUTSIDE = {
    "> 0": (0, -1.0, float("nan")),
    ">= 2": (1, float("nan")),
    "(0, 1]": (0.0, 1.1, float("nan")),
    "[0, 1)": (-0.1, 1.0),
    "[-1, inf)": (-1.1, float("inf"), "1"),
}


@pytest.mark.parametrize(("wanted", "value"), [(r, v) for r, held in HELD.items() for v in held])
def test_numbers_inside_pass(wanted, value):
    check_ranges(SimpleNamespace(x=value), x=wanted)


@pytest.mark.parametrize(("wanted", "value"), [(r, v) for r, out in OUTSIDE.items() for v in out])
def test_numbers_outside_are_refused(wanted, value):
    with pytest.raises(InputError, match=rf"SimpleNamespace: expected x .*, got {value!r}\.$"):
        check_ranges(SimpleNamespace(x=value), x=wanted)


@pytest.mark.parametrize(
    ("wanted", "value", "said"),
    [
        ("> 0", 0, "expected x above 0, got 0."),
        (">= 2", 1, "expected x of at least 2, got 1."),
        ("(0, 1]", 0.0, "expected x in (0, 1], got 0.0."),
        (("mean", "max"), "sum", "expected x 'mean' or 'max', got 'sum'."),
        ((2, 4, 8), 3, "expected x 2, 4 or 8, got 3."),
    ],
)
def test_the_message_says_parameter_range_and_value(wanted, value, said):
    with pytest.raises(InputError) as refused:
        check_ranges(SimpleNamespace(x=value), x=wanted)
    assert str(refused.value) == f"SimpleNamespace: {said}"


def test_none_is_not_checked_and_the_first_parameter_outside_is_named():
    check_ranges(SimpleNamespace(rank=None), rank=">= 1")
    with pytest.raises(InputError, match="expected rank of at least 1"):
        check_ranges(SimpleNamespace(k=2, rank=0, m=0), k=">= 1", rank=">= 1", m=">= 1")
