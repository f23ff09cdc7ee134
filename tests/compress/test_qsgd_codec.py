"""Random rounding to levels of the norm."""

import pytest

from compress.codec_case import assert_unbiased, draws, gradient
from sonde.compress import QsgdCodec
from sonde.core import InputError


@pytest.mark.essential
@pytest.mark.truth("variance of two neighbouring levels")
def test_mean_and_variance():
    x = gradient(3, 5)
    found = draws(QsgdCodec(levels=3), x, 4000)
    assert_unbiased(found, x)
    norm = float(x.double().norm())
    place = 3 * x.double().abs() / norm
    up = place - place.floor()
    expected = (norm / 3) ** 2 * float((up * (1 - up)).sum())
    lost = (found - x).square().sum((1, 2))
    assert abs(float(lost.mean()) - expected) < 4.5 * float(lost.std()) / 4000**0.5
    assert expected <= min(15 / 9, 15**0.5 / 3) * norm**2
    assert QsgdCodec(levels=3).most_lost(x) == pytest.approx(15 / 9)  # each off by a whole level


def test_seven_levels_take_four_bits():
    assert len(QsgdCodec(levels=7).encode(gradient(100, 80))) == 100 * 80 // 2 + 4 + 13 + 4


def test_no_level_is_refused():
    with pytest.raises(InputError, match="levels from 1 to 16777215 and seed from 0, got 0"):
        QsgdCodec(levels=0)
