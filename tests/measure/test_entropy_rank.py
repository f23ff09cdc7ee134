import pytest

from fixture_rows import X
from measure.digits import DIGITS
from sonde.measure import entropy_rank


@pytest.mark.truth("digits computed independently from the definition")
@pytest.mark.parametrize(("rows", "want"), [(X, 4.9892133238), (DIGITS, 20.5532513628)])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, want, source):
    assert entropy_rank(rows, source=source).value == pytest.approx(want, rel=1e-9)
