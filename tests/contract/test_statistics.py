"""Every statistic against every law."""

import pytest

from contract.statistics import (
    CASES,
    NO_INFLUENCE,
    NOT_EXACT,
    exported_statistics,
    learners,
    mergeable,
    name_of,
    private_cases,
)
from sonde.core.statistic import Statistic
from sonde.testing import laws_of

SLOW = {"sizes", "learner"}


def test_exported_set_is_tested_set():
    assert {type(c.statistic).__name__ for c in CASES} == exported_statistics()


def test_what_is_not_exact_has_a_reason():
    inexact = {type(c.statistic).__name__ for c in CASES if c.statistic.merging != "exact"}
    assert inexact == set(NOT_EXACT)


def test_what_has_no_influence_has_a_reason():
    lacking = {
        type(c.statistic).__name__
        for c in CASES
        if type(c.statistic).influence is Statistic.influence
    }
    assert lacking == set(NO_INFLUENCE)


@pytest.mark.parametrize(
    ("law", "case"),
    [
        pytest.param(
            law,
            case,
            id=f"{law.name}-{name_of(case)}",
            marks=[pytest.mark.slow] if law.name in SLOW else [],
        )
        for case in [*mergeable(), *learners()]
        for law in laws_of(case)
    ],
)
def test_law(law, case):
    law.hold(case)


def test_private_statistics_are_found():
    assert all(type(c.statistic).__module__.startswith("sonde.") for c in private_cases())
