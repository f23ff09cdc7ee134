"""Rows given the nearest of a dictionary."""

import math

import pytest
import torch

from sonde.compress import ConditionalCodec
from sonde.core import InputError, StateError


def kinds(n=900, seed=0):
    """Rows around five centres, with unequal noise in each of four channels."""
    draw = torch.Generator().manual_seed(seed)
    centres = 40 * torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    which = (torch.rand(n, generator=draw) ** 2 * 5).long()
    noise = torch.randn(n, 4, generator=draw) * torch.tensor([0.3, 1.0, 2.0, 5.0])
    return centres[which] + noise, which


@pytest.mark.truth("entropies of the planted kinds and of their noise")
def test_the_length_is_that_of_kinds_and_noise():
    x, which = kinds()
    codec = ConditionalCodec.fit(x, 5, step=0.2)
    found, stream = kinds(seed=1), None
    stream = codec.encode(found[0])
    p = torch.bincount(which).double() / len(which)
    nats = float(-(p * p.log()).sum())
    for spread in (0.3, 1.0, 2.0, 5.0):
        nats += 0.5 * math.log(2 * math.pi * math.e * (spread / 0.2) ** 2)
    bits = 900 * nats / math.log(2)
    assert 0.98 * bits < 8 * (len(stream) - 30) < 1.03 * bits
    assert float((codec.decode(stream) - found[0]).abs().max()) <= 0.1 + 1e-4
    one = ConditionalCodec.fit(x, 1, step=0.2)
    assert len(one.encode(found[0])) > 1.3 * len(stream)
    torch.testing.assert_close(one.entries[0], x.double().mean(0))


@pytest.mark.truth("rows that are entries")
def test_entries_take_almost_no_bits():
    centres = 10 * torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    rows = centres.repeat(40, 1)
    codec = ConditionalCodec.fit(rows, 16, step=0.5)
    stream = codec.encode(rows)
    assert len(stream) < 640 * 4 / 8 + 60  # four bits for which entry it is
    torch.testing.assert_close(codec.decode(stream), rows, rtol=0, atol=1e-4)
    half = codec.entries.float() + 0.25  # half a step: no difference is further from a code
    lost = float((codec.decode(codec.encode(half)) - half).square().sum() / half.square().sum())
    assert codec.most_lost(half) == pytest.approx(lost, rel=1e-4)
    assert codec.most_lost(torch.zeros(2, 6)) == math.inf


def test_another_dictionary_is_refused():
    x, _ = kinds()
    codec = ConditionalCodec.fit(x, 5)
    turned = ConditionalCodec(codec.entries.flip(0), codec.shares, codec.spreads, codec.step)
    with pytest.raises(StateError, match="fitted to other rows"):
        turned.decode(codec.encode(x))
    with pytest.raises(InputError, match=r"1 to 900 entries and a step above 0, got .* 901 and 1"):
        ConditionalCodec.fit(x, 901)
