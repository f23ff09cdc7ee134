"""The newest tokens of a cache."""

import pytest

from compress.cache_case import N_TOKENS, kept
from sonde.compress import RecentCache
from sonde.core import InputError


@pytest.mark.truth("the last tokens by counting")
def test_the_newest_tokens_stay():
    assert kept(RecentCache(5)) == [list(range(N_TOKENS - 5, N_TOKENS))] * 2
    assert kept(RecentCache(0.3)) == [list(range(N_TOKENS - 6, N_TOKENS))] * 2  # 5.1, rounded up


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"RecentCache: expected budget .* got 0"):
        RecentCache(0)
