"""Every statistic against every law."""

import pytest
import torch

from contract import laws
from contract.rows import make_columns
from contract.statistics import (
    CASES,
    ERRORS,
    NO_INFLUENCE,
    NOT_EXACT,
    exported_statistics,
    learners,
    mergeable,
    name_of,
    private_cases,
)
from sonde.core.statistic import Statistic

ALL = mergeable()
EXACT = [c for c in ALL if c.statistic.merging == "exact"]
BOUNDED = [c for c in ALL if c.statistic.merging == "bounded"]
FORMULA = [c for c in EXACT if type(c.statistic).influence is not Statistic.influence]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[name_of(c) for c in cases])


@pytest.fixture(scope="module")
def columns():
    return make_columns(300, 3, seed=7, dtype=torch.float64)


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


@each(EXACT)
def test_split(case, columns):
    laws.law_split(case, columns)


@each(EXACT)
def test_smallest_parts(case):
    laws.law_atoms(case, make_columns(60, 3, seed=2, dtype=torch.float64))


@each(EXACT)
def test_update(case, columns):
    laws.law_update(case, columns)


@each(ALL)
def test_size(case):
    laws.law_size(case)


@each(ALL)
def test_pure(case, columns):
    laws.law_pure(case, columns)


@pytest.mark.slow
@each(ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_sizes(case, dtype):
    laws.law_sizes(case, dtype)


@each(ALL)
def test_half(case):
    laws.law_half(case)


@each([c for c in EXACT if "x" in c.statistic.needs() and "grad" not in c.statistic.needs()])
def test_offset(case):
    laws.law_offset(case)


@each(FORMULA)
def test_influence(case):
    laws.law_influence(case)


@each(ALL)
def test_save(case, columns):
    laws.law_save(case, columns)


@each(ALL)
def test_identity(case):
    laws.law_identity(case)


@each(BOUNDED)
def test_bound(case, columns):
    laws.law_bound(case, columns, ERRORS[type(case.statistic).__name__])


@pytest.mark.slow
def test_learners():
    same_size = make_columns(300, 3, seed=7, dtype=torch.float64, length=4)
    metrics = make_columns(300, 7, seed=7, dtype=torch.float64, length=4)
    for learner in learners():
        laws.law_learner(learner, metrics if learner.span == "pair" else same_size)


def test_private_statistics_are_found():
    assert all(type(c.statistic).__module__.startswith("sonde.") for c in private_cases())
