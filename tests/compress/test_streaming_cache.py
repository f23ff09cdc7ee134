"""The first and the newest tokens of a cache."""

import pytest

from compress.cache_case import N_TOKENS, kept
from sonde.compress import StreamingCache
from sonde.core import InputError


@pytest.mark.truth("the first and last tokens by counting")
def test_the_first_and_the_newest_tokens_stay():
    assert kept(StreamingCache(7, n_first=3)) == [[0, 1, 2, *range(N_TOKENS - 4, N_TOKENS)]] * 2


def test_the_first_tokens_go_last_of_all():
    assert kept(StreamingCache(2, n_first=4)) == [[0, 1]] * 2


def test_a_negative_number_is_refused():
    with pytest.raises(InputError, match="n_first of at least 0, got -1"):
        StreamingCache(4, n_first=-1)
