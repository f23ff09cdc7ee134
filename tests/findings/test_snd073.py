import numpy as np
import pytest

from findings._nets import assert_clear, assert_raised
from findings._tables import bundled, evidence_with, table_of
from sonde.findings.codes.snd073 import SND073, idle_columns


@pytest.mark.truth("the columns that were added to a table of scikit-learn")
def test_constant_and_copied_columns_are_named_and_the_table_alone_is_clear() -> None:
    x, _, names = bundled("wine")
    assert_clear(SND073().check(evidence_with(x, names)))
    answer = (x[:, 0] > 13).astype(float)
    more = [x[:, 0] * 1.8 + 32, -x[:, 4], np.full(len(x), 7.0), answer, 1 - answer, x[:, 2]]
    whole = np.column_stack([x, *more])
    found = idle_columns(table_of(whole), 0.05)
    n = x.shape[1]
    assert found.copies == ((n, 0, False), (n + 1, 4, False), (n + 5, 2, True))
    assert found.constant == (n + 2,)
    finding = assert_raised(SND073().check(evidence_with(whole)), "note")
    assert finding.figure.value == 4
    assert "column 13 is a multiple (plus a constant) of column 0" in finding.sentence


@pytest.mark.truth("the share of numbers that were taken away")
def test_missing_numbers_are_a_note_and_a_warning_from_a_fifth_on() -> None:
    x, _, names = bundled("wine")
    for share, level in ((0.1, "note"), (0.3, "warning")):
        holes = x.copy()
        rows = np.arange(len(x)) < round(share * len(x))
        holes[rows, 5] = np.nan
        finding = assert_raised(SND073().check(evidence_with(holes, names)), level)
        assert finding.figure.value == pytest.approx(rows.mean())
        assert finding.sentence.startswith(f"Numbers are missing: {names[5]} in ")
    holes = x.copy()
    holes[:3, 5] = np.nan
    assert_clear(SND073().check(evidence_with(holes, names)))
