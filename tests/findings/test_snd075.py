import numpy as np
import pytest

from findings._nets import assert_clear, assert_raised
from findings._tables import HEALTHY, bundled, evidence_with
from sonde.findings.codes.snd075 import SND075


@pytest.mark.truth("the numbers that were written in a table of scikit-learn")
def test_impossible_numbers_and_dates_are_named() -> None:
    x, _, names = bundled("wine")
    draw = np.random.default_rng(0)
    age, late = draw.normal(50, 12, len(x)).round(1), draw.normal(45, 3, len(x))
    age[[3, 8]], late[50] = (220.5, 431), -95
    table = np.column_stack([x, age, late])
    finding = assert_raised(SND075().check(evidence_with(table, [*names, "Age", "lat"])), "warning")
    assert finding.examples == (3, 8, 50)
    assert (
        "Age is outside the possible range (age: 0 to 130) in 2 of 178 rows (1.1 %), such as 431."
        in (finding.sentence)
    )
    assert "lat is outside the possible range (lat: -90 to 90) in 1 of 178 rows" in finding.sentence
    day = np.array([20200000 + 100 * m + d for m in range(1, 13) for d in range(1, 29)], float)
    dates = np.column_stack([x, draw.choice(day, len(x))])
    finding = assert_raised(SND075().check(evidence_with(dates, [*names, "visit"])), "warning")
    assert finding.sentence.startswith("visit holds dates (YYYYMMDD)")
    numbers = np.column_stack([x, draw.integers(20200101, 20209999, len(x))])
    assert_clear(SND075().check(evidence_with(numbers, [*names, "number"])))


def test_healthy_tables_and_scaled_columns_are_clear() -> None:
    for name in HEALTHY:
        x, _, names = bundled(name)
        assert_clear(SND075().check(evidence_with(x, names)))  # the ages of diabetes are centred
    x, _, names = bundled("wine")
    x[::9, 0] = -999  # a constant that SND072 names
    assert_clear(SND075().check(evidence_with(x, ["age", *names[1:]])))


def test_ages_in_days_are_no_typing_errors() -> None:
    x, _, names = bundled("wine")
    age = np.random.default_rng(0).choice([3.0, 7, 14, 28, 56, 90, 120], len(x))
    age[::20] = np.resize([180.0, 270, 365], len(age[::20]))
    assert_clear(SND075().check(evidence_with(np.column_stack([x, age]), [*names, "age"])))
    age[age > 120] = 900.0  # far from the others
    finding = assert_raised(
        SND075().check(evidence_with(np.column_stack([x, age]), [*names, "age"])), "warning"
    )
    assert finding.examples == tuple(range(0, len(x), 20))
