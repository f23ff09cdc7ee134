"""Rows given the nearest of a dictionary."""

import math

import pytest
import torch

from sonde.compress import ConditionalCodec
from sonde.compress._synthesis import Synthesis, learned_synthesis
from sonde.compress.conditional_codec import nearest_entries
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


def mixtures(n=1200, seed=0, spread=0.3):
    """Rows between a centre and the one next to it on a circle, halfway on average."""
    draw = torch.Generator().manual_seed(seed)
    angle = torch.arange(8) * torch.pi / 4
    centres = 40 * torch.stack([angle.cos(), angle.sin(), (2 * angle).cos()], 1)
    first = torch.randint(8, (n,), generator=draw)
    middle = (centres[first] + centres[(first + 1) % 8]) / 2
    return centres, middle + spread * torch.randn(n, 3, generator=draw)


@pytest.mark.slow
@pytest.mark.truth("the entropy of pairs and of their noise, and the whole code by hand")
def test_one_reference_is_made_of_two_entries():
    centres, rows = mixtures()
    plain = ConditionalCodec(
        centres.double(), torch.ones(8).double() / 8, torch.ones(3).double(), 0.2
    )
    chosen = nearest_entries(rows.double(), plain.entries, 2)
    net = learned_synthesis(
        rows.double(), plain.entries, chosen, torch.full((3,), 60.0), 0.2, 16, 800, 0, 0.11
    )
    follows = torch.full((8, 8), 0.01).double()
    follows[chosen[:, 0], chosen[:, 1]] = 1.0
    follows /= follows.sum(1, keepdim=True)
    two = ConditionalCodec(plain.entries, plain.shares, plain.spreads, 0.2, follows, net.weights)
    fresh = mixtures(seed=1)[1]
    stream = two.encode(fresh)
    noise = 3 * 0.5 * math.log2(2 * math.pi * math.e * (0.3 / 0.2) ** 2)
    assert 4 + noise < 8 * len(stream) / 1200 < 1.1 * (4 + noise)  # eight, and one of two beside it
    assert float((two.decode(stream) - fresh).abs().max()) <= 0.1 + 1e-4
    by_hand = two.entries[nearest_entries(fresh.double(), two.entries, 2)].mean(1)
    expected, spread = Synthesis(two.synthesis)(
        two.entries[nearest_entries(fresh.double(), two.entries, 2)], 0.11
    )
    assert float((expected - by_hand).abs().mean()) < 0.2  # below the noise
    assert spread.mean() == pytest.approx(1.5, rel=0.1)


@pytest.mark.slow
@pytest.mark.truth(
    "the same codec with a network that was not trained, whose start is a fixed mean"
)
def test_training_the_network_saves_bits():
    rows, fresh = (mixtures(seed=i)[1] for i in (0, 1))
    trained, start = (
        ConditionalCodec.fit(rows, 4, 0.2, references=2, updates=updates) for updates in (400, 0)
    )
    assert len(trained.encode(fresh)) < 0.85 * len(start.encode(fresh))
    entries = start.entries[nearest_entries(fresh.double(), start.entries, 2)]
    started, spread = Synthesis(start.synthesis)(entries, 0.11)
    weight = math.exp(2) / (1 + math.exp(2))
    torch.testing.assert_close(
        started, entries[:, 0].lerp(entries[:, 1], 1 - weight), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(spread[5], start.spreads, rtol=1e-5, atol=0)


def test_more_references_than_entries_are_refused():
    with pytest.raises(InputError, match=r"0 to 4 references, at least 1 hidden unit .* 5, 32"):
        ConditionalCodec.fit(kinds()[0], 4, references=5)


def test_rows_that_are_not_finite_are_refused():
    rows = kinds()[0].clone()
    rows[3, 0] = math.nan
    with pytest.raises(InputError, match=f"finite numbers, got 1 of {len(rows)} rows"):
        ConditionalCodec.fit(rows, 4)
