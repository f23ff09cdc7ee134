"""Signs and the scale that loses least."""

import pytest
from scipy.optimize import minimize_scalar

from compress.codec_case import gradient
from sonde.compress import SignCodec, TopKCodec
from sonde.core import StateError


@pytest.mark.truth("scipy's minimiser of the squared error")
def test_no_other_scale_loses_less():
    x = gradient(5, 7).double()
    found = SignCodec().decode(SignCodec().encode(x))
    best = minimize_scalar(lambda c: float((x - c * x.sign()).square().sum()))
    assert float((found - x).square().sum()) == pytest.approx(best.fun, rel=1e-6)
    assert bool((found.sign() == x.sign()).all())


def test_one_bit_for_each_entry():
    assert len(SignCodec().encode(gradient(100, 80))) == 100 * 80 // 8 + 4 + 13 + 3


def test_a_stream_of_another_codec_is_refused():
    with pytest.raises(StateError, match="expected a stream of SignCodec, version 1"):
        SignCodec().decode(TopKCodec().encode(gradient(5, 7)))
