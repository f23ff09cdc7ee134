"""Each law is seen to fail on a twin that breaks it, and to hold for one that does not."""

import pytest
import torch

from contract import broken, instrument_laws, laws
from contract.rows import make_columns
from contract.statistics import rank_error
from sonde.core.plan import Split
from sonde.stats import Moments

FAILS = (AssertionError, ValueError, TypeError)


@pytest.fixture(scope="module")
def columns():
    return make_columns(300, 3, seed=7, dtype=torch.float64)


@pytest.fixture(scope="module")
def inputs():
    return instrument_laws.make_inputs()


def case(statistic, kind="row"):
    return laws.Case(statistic, kind)


@pytest.mark.parametrize("twin", [broken.AddsMeans(), broken.IndexSample(), broken.SplitsGroups()])
def test_split(twin, columns):
    with pytest.raises(AssertionError, match="state"):
        laws.law_split(case(twin), columns)


def test_smallest_parts():
    columns = make_columns(60, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"state\.mean"):
        laws.law_atoms(case(broken.AddsMeans()), columns)


def test_whole_groups_repair_the_split(columns):
    laws.law_split(case(broken.SplitsGroups(), "group"), columns)


def test_update(columns):
    with pytest.raises(AssertionError, match=r"state\.n"):
        laws.law_update(case(broken.OtherUpdate()), columns)


def test_size():
    with pytest.raises(AssertionError, match="bytes for 1024 rows"):
        laws.law_size(case(broken.KeepsRows()))


@pytest.mark.parametrize(
    ("twin", "message"),
    [(broken.ChangesOperand(), "left operand"), (broken.ChangesRows(), "column x changed")],
)
def test_pure(twin, message):
    with pytest.raises(AssertionError, match=message):
        laws.law_pure(case(twin), make_columns(50, 3))


def test_sizes():
    with pytest.raises(AssertionError, match="not finite for n=1"):
        laws.law_sizes(case(broken.NanOfOneRow()), torch.float64)


def test_half():
    with pytest.raises(AssertionError, match=r"state\.mean"):
        laws.law_half(case(broken.HalfSums()))


def test_offset():
    with pytest.raises(AssertionError, match=r"state\.scatter"):
        laws.law_offset(case(broken.RawSquares()))


def test_influence():
    with pytest.raises(AssertionError, match="of the largest effect"):
        laws.law_influence(case(broken.HalfInfluence()))


def test_save(columns):
    with pytest.raises(FAILS):
        laws.law_save(case(broken.UntypedState()), columns)


def test_identity():
    with pytest.raises(AssertionError, match="named HistogramState"):
        laws.law_identity(case(broken.OtherState()))


def test_bound(columns):
    with pytest.raises(AssertionError, match="off by"):
        laws.law_bound(case(broken.BoastsOfItsBound()), columns, rank_error)


@pytest.mark.parametrize(
    ("twin", "message"),
    [(broken.Unseeded(), "two runs differ"), (broken.MergingLearner(), "a learner merged")],
)
def test_learner(twin, message, columns):
    with pytest.raises(AssertionError, match=message):
        laws.law_learner(twin, columns)


def test_split_by_group(columns):
    laws.law_whole_groups_held(Split(0.5), columns, columns["group_draw"])
    with pytest.raises(AssertionError, match="in both parts"):
        laws.law_whole_groups_held(broken.RowSplit(0.5), columns, columns["draw"])


def test_good_twin_passes(columns):
    for law in (laws.law_split, laws.law_update, laws.law_pure):
        law(case(Moments()), columns)


@pytest.mark.parametrize(
    ("law", "twin", "message"),
    [
        ("law_value", broken.WithoutCount(), "n = 0"),
        ("law_order", broken.AsksTheFirstRow(), "not close|Scalars are not"),
        ("law_again", broken.Rolls(), "not (close|equal)"),
        ("law_score_finite", broken.Distance("nan"), "non-finite rows"),
        ("law_score_alone", broken.Distance("batch"), "not close"),
        ("law_score_direction", broken.Distance("flipped"), "far rows score"),
    ],
)
def test_instrument(law, twin, message, inputs):
    with pytest.raises(AssertionError, match=message):
        getattr(instrument_laws, law)(twin, inputs)


def test_degenerate():
    with pytest.raises(AssertionError, match="1 rows: value"):
        instrument_laws.law_degenerate(broken.SwallowsNan(), instrument_laws.make_inputs)


def test_sizes_of_instruments():
    with pytest.raises(AssertionError, match="rows of 1: value"):
        instrument_laws.law_sizes(broken.SwallowsNan(), instrument_laws.make_inputs)


def test_company(inputs):
    with pytest.raises(AssertionError, match=r"not close|not equal"):
        instrument_laws.law_company(broken.HearsOthers(), [broken.HearsOthers(1)], inputs)


def test_then():
    with pytest.raises(AssertionError, match="ignores the result"):
        instrument_laws.law_then(broken.IgnoresFirstPass(), instrument_laws.make_inputs)


def test_good_detector_passes(inputs):
    good = broken.Distance()
    for name in ("value", "order", "again", "score_finite", "score_alone", "score_direction"):
        getattr(instrument_laws, f"law_{name}")(good, inputs)
    instrument_laws.law_degenerate(good, instrument_laws.make_inputs)
    instrument_laws.law_sizes(good, instrument_laws.make_inputs)
