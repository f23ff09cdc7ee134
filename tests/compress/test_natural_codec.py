"""Random rounding to powers of two."""

import pytest
import torch

from compress.codec_case import assert_unbiased, draws, gradient
from sonde.compress import NaturalCodec
from sonde.core import InputError


@pytest.mark.essential
@pytest.mark.truth("the two powers of two beside each number")
def test_mean_and_neighbours():
    x = gradient(3, 5)
    found = draws(NaturalCodec(), x, 4000)
    assert_unbiased(found, x)
    low = 2.0 ** x.double().abs().log2().floor()
    assert bool(((found.abs() == low) | (found.abs() == 2 * low)).all())
    lost = (found - x).square().mean(0)
    assert bool((lost <= 1.1 * x.double().square() / 8).all())


def test_powers_stay_and_tiny_numbers_are_unbiased():
    x = torch.tensor([2.0**127, -(2.0**-126), 0.0, 2.0**-127])
    found = draws(NaturalCodec(), x, 400)
    assert bool((found[:, :3] == x[:3].double()).all())
    assert set((found[:, 3] * 2.0**126).tolist()) == {0.0, 1.0}
    assert float(found[:, 3].mean() * 2.0**127) == pytest.approx(1.0, abs=0.25)


def test_nine_bits_for_each_entry():
    assert len(NaturalCodec().encode(gradient(100, 80))) == 100 * 80 * 9 // 8 + 13 + 3


def test_too_large_a_number_is_refused():
    with pytest.raises(InputError, match=r"magnitudes up to 2\^127, got 3"):
        NaturalCodec().encode(torch.tensor([3e38]))
