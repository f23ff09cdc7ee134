import pytest

from scan._faults import Outcome, faults, outcome, summary

pytestmark = pytest.mark.slow

FEW = (
    "two names exchanged",
    "causal mask missing",
    "eps underflow",
    "inverted pictures",
    "layer of rank one",
)


@pytest.mark.parametrize("name", FEW)
def test_a_fault_is_found_and_its_twin_is_clear(name: str) -> None:
    (fault,) = (f for f in faults() if f.name == name)
    found = outcome(fault)
    assert found.found in fault.codes
    assert found.words.endswith(".")
    assert found.false == ()


def test_the_table_says_its_rates() -> None:
    rows = [Outcome("a", "SND001", "Words.", (), 1.0), Outcome("b", "", "", ("SND002",), 1.0)]
    assert summary(rows) == "1 of 2 faults found (50%), 1 of 2 twins clear; 2 s"
    assert len({f.name for f in faults()}) == len(list(faults())) >= 32
