"""The largest entries, in as many bytes as counted."""

from itertools import combinations
from math import comb, log2

import pytest
import torch

from compress.codec_case import gradient
from sonde.compress import TopKCodec
from sonde.core import InputError


@pytest.mark.truth("search over every choice of entries")
def test_no_other_entries_lose_less():
    x = gradient(3, 4)
    found = TopKCodec(keep=0.3).decode(TopKCodec(keep=0.3).encode(x))
    lost = float((found - x).square().sum())
    kept = [sum(float(x.flatten()[i]) ** 2 for i in c) for c in combinations(range(12), 4)]
    assert lost == pytest.approx(float(x.square().sum()) - max(kept), rel=1e-6)


@pytest.mark.truth("entries of equal magnitude: the most that any tensor loses")
def test_the_bound_is_reached_by_entries_of_one_magnitude():
    codec, x = TopKCodec(keep=0.3), gradient(5, 7).sign()
    found = codec.decode(codec.encode(x))
    assert codec.most_lost(x) == pytest.approx(float((found - x).square().sum()) / 35, rel=1e-6)


@pytest.mark.truth("the logarithm of the number of choices, and torch's own largest entries")
@pytest.mark.parametrize("share", [0.01, 0.6])
def test_places_take_few_bits(share):
    x, k = gradient(40_000), round(share * 40_000)
    stream = TopKCodec(keep=share).encode(x)
    n_bits = 8 * (len(stream) - 4 * k - 24)
    assert log2(comb(40_000, k)) <= 8 * (len(stream) - 4 * k)
    assert n_bits <= 1.1 * log2(comb(40_000, k))
    kept = x.flatten().abs().topk(k).indices
    expected = torch.zeros(40_000).index_copy(0, kept, x.flatten()[kept])
    assert TopKCodec(keep=share).decode(stream).flatten().equal(expected)


def test_of_equal_entries_the_earlier_stay():
    codec = TopKCodec(keep=0.5)
    assert codec.decode(codec.encode(torch.tensor([1.0, -1.0, 1.0, -1.0]))).tolist() == [
        1,
        -1,
        0,
        0,
    ]


def test_a_wrong_share_is_refused():
    with pytest.raises(InputError, match=r"keep in \(0, 1\], got 0"):
        TopKCodec(keep=0)
