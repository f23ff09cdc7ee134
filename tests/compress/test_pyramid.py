"""Budgets that fall with depth."""

import pytest

import sonde
from cache_name import CACHE
from compress.cache_case import net, prompt
from sonde.compress import KeyNorm, RecentCache, pyramid
from sonde.core import InputError


@pytest.mark.truth("sums of an arithmetic series")
@pytest.mark.parametrize(
    ("budget", "top", "n"), [(13, 0.3, 7), (40, 1.6, 4), (9, 0.4, 2), (5, 0.9, 1)]
)
def test_budgets_fall_in_equal_steps_and_add_up(budget, top, n):
    found = [float(rule.budget) for rule in pyramid(KeyNorm(budget), n, top)]
    assert sum(found) == budget * n
    line = [budget * ((2 - top) + i * (2 * top - 2) / max(n - 1, 1)) for i in range(n)]
    assert n == 1 or max(abs(a - b) for a, b in zip(found, line, strict=True)) <= 1
    shares = [float(rule.budget) for rule in pyramid(KeyNorm(0.25), n, top)]
    assert sum(shares) / n == pytest.approx(0.25)


def test_layers_of_a_cache_follow():
    rules = pyramid(RecentCache(6), 3, 0.5)
    with sonde.caching(net(), rules.__getitem__) as cache:
        net()(prompt(), **{CACHE: cache})
        assert [x.kept().shape[2] for x in cache.evicting] == [9, 6, 3]


def test_shares_above_all_tokens_and_odd_tops_are_refused():
    with pytest.raises(InputError, match="budget"):
        pyramid(KeyNorm(0.7), 3, 0.2)
    with pytest.raises(InputError, match=r"top in \(0, 2\)"):
        pyramid(KeyNorm(), 3, 2.0)
