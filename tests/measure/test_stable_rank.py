import numpy as np
import pytest

from fixture_rows import X
from measure.digits import DIGITS
from sonde.measure import stable_rank


@pytest.mark.truth("digits computed independently from the definition")
@pytest.mark.parametrize(("rows", "want"), [(X, 4.619785297), (DIGITS, 6.7156490059)])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, want, source):
    assert stable_rank(rows, source=source).value == pytest.approx(want, rel=1e-9)


def test_null_of_two_rows_is_one_direction():
    assert stable_rank(np.random.default_rng(0).standard_normal((2, 5))).null == 1.0
