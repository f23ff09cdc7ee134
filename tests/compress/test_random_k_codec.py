"""Entries that a seed draws: unbiased, of known variance, without places in the stream."""

from dataclasses import replace

import pytest
import torch

from compress.codec_case import assert_unbiased, draws, gradient
from sonde.compress import RandomKCodec
from sonde.core import InputError


@pytest.mark.essential
@pytest.mark.truth("mean and variance of drawing without replacement")
def test_mean_and_variance():
    x = gradient(3, 4)
    found = draws(RandomKCodec(keep=0.4), x, 4000)
    assert_unbiased(found, x)
    lost = (found - x).square().sum((1, 2))
    expected = (12 / 5 - 1) * float(x.double().square().sum())
    assert abs(float(lost.mean()) - expected) < 4.5 * float(lost.std()) / 4000**0.5


@pytest.mark.truth("each entry as the only one that is not 0")
@pytest.mark.parametrize("given", [{"keep": 0.6}, {"keep": 0.2}, {"keep": 0.2, "scaled": False}])
def test_the_most_that_is_lost_is_reached(given):
    codec, lost = RandomKCodec(**given), []
    for x in torch.eye(10):
        lost.append(float((codec.decode(codec.encode(x)) - x).square().sum()))
    assert codec.most_lost(torch.eye(10)[0]) == pytest.approx(max(lost))


def test_the_stream_brings_its_seed_and_no_places():
    codec = RandomKCodec(keep=0.1, scaled=False, seed=9)
    x = gradient(30, 40)
    stream = codec.encode(x)
    assert len(stream) <= 4 * 120 + 24
    found = replace(codec, seed=0).decode(stream)
    assert int((found != 0).sum()) == 120
    assert bool((found[found != 0] == x[found != 0]).all())


def test_a_wrong_seed_is_refused():
    with pytest.raises(InputError, match="seed of at least 0, got -1"):
        RandomKCodec(seed=-1)
