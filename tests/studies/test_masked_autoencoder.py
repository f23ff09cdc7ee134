"""A masked autoencoder sees visible patches alone, and patches are squares of a digit."""

import pytest
import torch
from torch.nn.functional import unfold

from sonde_studies._masked_autoencoder import (
    PATCHES,
    SIDE,
    Classifier,
    MaskedAutoencoder,
    learn_pixels,
)
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.worlds.learning import drawn, squares_of

DIGITS = shuffled_digits(0)[0][:6]


@pytest.mark.truth("torch's unfold")
@pytest.mark.parametrize("side", [2, 4])
def test_squares_of_digits(side):
    wanted = unfold(DIGITS.reshape(-1, 1, 8, 8), side, stride=side).transpose(1, 2)
    assert torch.equal(squares_of(DIGITS, side), wanted)
    assert torch.equal(squares_of(DIGITS.reshape(-1, 1, 8, 8), side), wanted)


@torch.no_grad()
def test_hidden_patches_do_not_count_and_visible_ones_do():
    net, x = drawn(lambda: MaskedAutoencoder(8, 2), 0), squares_of(DIGITS, SIDE)
    mask = torch.arange(PATCHES).expand(len(x), -1) % 4 > 0
    middle, made = net.decoded(x, mask)
    assert middle.shape == (6, PATCHES, 8)
    assert made.shape == x.shape
    other = torch.where(mask[..., None], torch.rand_like(x), x)
    assert torch.equal(net.decoded(other, mask)[1], made)
    other = torch.where(mask[..., None], x, torch.rand_like(x))
    assert not torch.equal(net.decoded(other, mask)[1], made)
    assert torch.equal(net.encoded(x, mask), net.encoded(other := x.clone(), mask))
    assert drawn(lambda: Classifier(net, 8), 1)(other).shape == (6, 10)


def test_hidden_pixels_are_learned():
    x = squares_of(shuffled_digits(0)[0], SIDE)
    net = drawn(lambda: MaskedAutoencoder(8, 1), 0)
    mask = torch.arange(PATCHES).expand(len(x), -1) % 4 > 0
    error = []
    for steps in (0, 40):
        learn_pixels(net, x, steps, 0)
        with torch.no_grad():
            error.append(float((net.decoded(x, mask)[1] - x)[mask].square().mean()))
    assert error[1] < error[0] / 2
