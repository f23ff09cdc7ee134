"""Mean excess of a rate."""

import numpy as np
import pytest

from sonde.compress import bd_rate
from sonde.core import InputError

RATES, QUALITIES = [0.31, 0.9, 1.7, 4.2], [27.0, 31.5, 33.0, 38.0]


@pytest.mark.truth("a shifted curve, and straight lines of log rate in closed form")
def test_known_curves():
    more = [1.37 * r for r in RATES]
    assert bd_rate(RATES, QUALITIES, more, QUALITIES) == pytest.approx(0.37)
    assert bd_rate(more[::-1], QUALITIES[::-1], RATES, QUALITIES) == pytest.approx(1 / 1.37 - 1)
    one, two = np.array([20.0, 27.0, 31.0, 40.0]), np.array([25.0, 33.0, 38.0, 47.0])
    found = bd_rate(np.exp(0.1 * one), one, np.exp(0.3 + 0.12 * two), two)
    a, b = 25.0, 40.0  # what both reach
    assert found == pytest.approx(np.exp(0.3 + 0.02 * (a + b) / 2) - 1)
    back = bd_rate(np.exp(0.3 + 0.12 * two), two, np.exp(0.1 * one), one)
    assert back == pytest.approx(1 / (1 + found) - 1)


def test_curves_that_do_not_compare_are_refused():
    with pytest.raises(InputError, match="overlapping qualities, got 27 to 38 and 39 to 40"):
        bd_rate(RATES, QUALITIES, [1, 2], [39, 40])
    with pytest.raises(InputError, match="rates above 0 that rise with the quality"):
        bd_rate(RATES, QUALITIES, [2, 1], [30, 35])
    with pytest.raises(InputError, match="rates above 0 that rise with the quality"):
        bd_rate(RATES, QUALITIES, [1, 2, 3], [30, 35, 35])
    with pytest.raises(InputError, match="at least two points per curve"):
        bd_rate([1], [2], RATES, QUALITIES)
