"""Short keys stay."""

import pytest

from compress.cache_case import best, kept, keys
from sonde.compress import KeyNorm


@pytest.mark.truth("keys of a plain cache, sorted by their norm")
def test_the_shortest_keys_stay():
    norms = keys().square().sum(-1).sqrt()

    assert kept(KeyNorm(6)) == best(-norms, 6)
    assert len(set(map(tuple, kept(KeyNorm(6))))) == 2, "both heads chose the same tokens"
