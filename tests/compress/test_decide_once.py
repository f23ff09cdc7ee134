"""Each token is decided on once."""

import pytest
import torch

import sonde
from cache_name import CACHE
from compress.cache_case import kept, keys, net, prompt
from sonde.compress import DecideOnce, KeyNorm
from sonde.core import InputError


@pytest.mark.truth("a loop over blocks and the norms of the plain cache's keys")
@pytest.mark.parametrize(("budget", "block", "each"), [(0.5, 5, 3), (0.25, 4, 1)])
def test_the_best_of_each_full_block_stay(budget, block, each):
    expected = []
    for head in keys().norm(dim=-1).tolist():
        found = []
        for start in range(0, 17 - block + 1, block):
            place = sorted(range(start, start + block), key=lambda i, x=head: x[i])
            found += sorted(place[:each])
        expected.append(found + list(range(17 // block * block, 17)))
    assert kept(DecideOnce(budget, KeyNorm(), block)) == expected


@pytest.mark.truth("the same tokens whatever the calls were; kept ones never move")
def test_what_was_decided_never_changes_in_steps_as_in_one_call():
    model, ids = net(), prompt()
    rule = DecideOnce(0.5, KeyNorm(), 4)
    with torch.no_grad(), sonde.caching(model, rule) as cache:
        before: list[list[int]] = [[], []]
        for start in range(17):
            model(ids[:, start : start + 1], **{CACHE: cache})
            found = cache.evicting[0].kept()[0].tolist()
            decided = 2 * ((start + 1) // 4)
            for old, new in zip(before, found, strict=True):
                assert new[: len(old)] == old
            before = [head[:decided] for head in found]
        assert before[0] != before[1]
        steps = cache.evicting[0].kept()
    with torch.no_grad(), sonde.caching(model, rule) as cache:
        model(ids, **{CACHE: cache})
        assert torch.equal(cache.evicting[0].kept(), steps)


def test_a_number_of_tokens_is_refused():
    with pytest.raises(InputError, match="budget to be a fraction"):
        DecideOnce(8)
