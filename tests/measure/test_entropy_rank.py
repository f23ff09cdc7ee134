import pytest
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from fixture_rows import X
from narrow import expect
from sonde.measure import entropy_rank

DIGITS = expect(Bunch, load_digits()).data


@pytest.mark.truth("digits computed independently from the definition")
@pytest.mark.parametrize(("rows", "want"), [(X, 4.9892133238), (DIGITS, 20.5532513628)])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, want, source):
    assert entropy_rank(rows, source=source).value == pytest.approx(want, rel=1e-9)
